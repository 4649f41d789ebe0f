"""fxptq.quant."""
