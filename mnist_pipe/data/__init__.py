"""From published files to tensors."""
