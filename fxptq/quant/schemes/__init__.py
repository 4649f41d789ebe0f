"""The bundled schemes, one file each; fxptq.quant.scheme imports every module of this folder."""
