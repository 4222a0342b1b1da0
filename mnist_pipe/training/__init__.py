"""From tensors to weights: plain torch in `loop`, Ray Train in `distributed`, Ray Tune in `search`."""
