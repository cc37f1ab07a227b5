"""Features of frozen backbones and what is measured on them."""
