"""fxptq.graph."""
