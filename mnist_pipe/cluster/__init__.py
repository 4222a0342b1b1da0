"""Ray's session on a cluster or one machine, the shared storage, and the exchange between client and worker."""
