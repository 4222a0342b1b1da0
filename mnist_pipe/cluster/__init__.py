"""Many machines, or one: Ray's session, the shared storage, and what travels between client and worker."""
