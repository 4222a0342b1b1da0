"""LeNet-5 under every optimizer, at the library's defaults and at its best learning rate."""
