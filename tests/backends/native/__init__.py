"""The compiled ops, and the CPU's kernels; ``tests/native`` drives what knows no torch."""
