"""Data: sources, splits, one preprocessing, and augmentation on the device."""
