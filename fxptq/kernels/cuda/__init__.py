"""The integer operators on NVIDIA GPUs, as Triton kernels; register.py imports and installs them."""
