"""Crops and masks, made on the device."""
