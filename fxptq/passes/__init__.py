"""Passes over a network's quantizers: importing this package registers those that come with fxptq."""

from fxptq.passes import dobi, dobi2d, dqc, minmax, observe, percentile
from fxptq.passes.base import Context, Pass, PassReport, build_pass, get_pass, pass_names, register, run_passes
from fxptq.passes.progress import Progress, RichProgress, Silent

__all__ = [
    "Context",
    "Pass",
    "PassReport",
    "Progress",
    "RichProgress",
    "Silent",
    "build_pass",
    "dobi",
    "dobi2d",
    "dqc",
    "get_pass",
    "minmax",
    "observe",
    "pass_names",
    "percentile",
    "register",
    "run_passes",
]
