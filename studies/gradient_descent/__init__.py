"""The 784-15-10 sigmoid network of the lesson on gradient descent: three encodings, three batch sizes."""
