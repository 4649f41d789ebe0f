"""fxptq.kernels."""
