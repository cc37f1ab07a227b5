"""Device axes, meshes of devices, and where rows of a batch and parts of arrays live on them."""
