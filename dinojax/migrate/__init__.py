"""Configuration files of the PyTorch references, read and translated."""
