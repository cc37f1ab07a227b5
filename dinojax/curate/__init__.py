"""From a pool of images to a clean, balanced set that `train` reads (docs/curation.md)."""
