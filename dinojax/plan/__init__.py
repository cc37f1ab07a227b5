"""A step compiled for machines one does not have, and a recipe told in words."""
