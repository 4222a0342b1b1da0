"""The data sets: downloading, decoding, normalizing, storing and augmenting their images."""
