"""The model registry and the gates in front of it."""
