"""The operations as Triton kernels for NVIDIA GPUs. Importing this package imports neither triton nor anything of CUDA."""
