"""Trained heads on a frozen backbone: depth, canopy height, segmentation, detection."""
