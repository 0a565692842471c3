"""The CUDA kernels: on the host bench, compiled by nvcc, and on a GPU where there is one."""
