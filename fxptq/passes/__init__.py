"""Passes: what happens to a network's quantizers, one after the other; importing this registers the bundled ones."""

from fxptq.passes import dobi, dobi2d, dqc, gptq, minmax, moments, observe, percentile

__all__ = ["dobi", "dobi2d", "dqc", "gptq", "minmax", "moments", "observe", "percentile"]
