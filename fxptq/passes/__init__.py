"""fxptq.passes."""
