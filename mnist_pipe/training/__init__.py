"""From tensors to weights: plain torch in `loop`, Ray Train in `ray_train`."""
