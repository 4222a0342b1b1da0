"""Training from tensors to weights: plain PyTorch in `loop`, Ray Train around it in `ray_train`."""
