"""The best single network and the best ensemble that this machine trains in an hour, beside the published records."""
