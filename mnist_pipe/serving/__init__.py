"""The HTTP endpoint of a registered model, and its page, on Ray Serve."""
