"""fxptq.evaluate."""
