"""Sources of images, decoding, order and loading; the host alone."""
