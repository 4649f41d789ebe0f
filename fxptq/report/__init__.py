"""fxptq.report."""
