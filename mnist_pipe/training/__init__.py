"""From tensors to weights: plain torch in `loop`, Ray Train around it in `ray_train`."""
