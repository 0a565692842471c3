"""The Triton kernels: in its interpreter, compiled without a GPU, and on one."""
