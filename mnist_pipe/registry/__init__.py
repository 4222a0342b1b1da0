"""The model registry and the gates that a model must pass to become its champion."""
