"""Variants of the cells."""
