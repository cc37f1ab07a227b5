"""Pictures: crops, PCA and similarity of patches, charts."""
