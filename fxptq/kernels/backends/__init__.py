"""The bundled back ends, one file each; fxptq.kernels.backend imports every module of this folder."""
