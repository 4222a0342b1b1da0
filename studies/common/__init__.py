"""What the studies share: how runs are computed and remembered, and how they are shown."""
