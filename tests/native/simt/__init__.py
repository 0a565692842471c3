"""A GPU of the host: runs the CUDA sources, in any order of threads and blocks, and looks on."""
