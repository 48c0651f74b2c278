"""Native kernels for CPUs: C++ in `native/`, called through ctypes. Knows nothing of GPUs."""
