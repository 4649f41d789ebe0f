"""fxptq.io."""
