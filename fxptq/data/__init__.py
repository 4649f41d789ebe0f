"""fxptq.data."""
