"""Fold per-channel scales and shifts into the weights of the layer next to them."""
