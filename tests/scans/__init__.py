"""Differentiation, autocast, lengths and resets, for every backend at once."""
