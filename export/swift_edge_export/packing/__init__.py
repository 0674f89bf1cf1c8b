"""Weights, keys and values in fewer bits."""
