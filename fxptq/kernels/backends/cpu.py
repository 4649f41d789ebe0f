"""The back end of the CPU: C++ kernels of the wheel or compiled here (kernels/build.py), with weights in panels."""

from __future__ import annotations

from fxptq.graph.sites import Site
from fxptq.kernels import build
from fxptq.kernels.backend import Backend, Grids, Installed, Served, register
from fxptq.kernels.layouts import PANELS
from fxptq.kernels.limits import serve
from fxptq.refusal import Refusal


@register("cpu")
class Cpu(Backend):
    """Runs compiled kernels, or plain torch where nothing can be compiled."""

    device = "cpu"
    maps = True

    def install(self) -> Installed:
        """Loads the kernels, compiled if need be."""
        return build.backend()

    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        """See `Backend`."""
        return serve(site, grids, PANELS)
