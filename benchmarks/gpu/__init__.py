"""``python -m benchmarks.gpu``: what a GPU has to say of the kernels, the most telling first."""
