"""The bundled schemes, one file each; fxptq.quant.scheme finds them by their place."""
