"""The bench: drives the kernels that know no torch, and what they are compiled with.

``simt`` runs the CUDA kernels on the host.
"""
