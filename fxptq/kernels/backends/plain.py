"""The back end in plain torch: it runs the definitions of the operators without kernels, exactly and slowly."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fxptq.graph.sites import Site
from fxptq.kernels import ops
from fxptq.kernels.backend import Backend, Grids, Installed, Served, register
from fxptq.kernels.layouts import PANELS
from fxptq.kernels.limits import serve
from fxptq.refusal import Refusal


@register("torch")
class Plain(Backend):
    """The reference that every other back end is compared with."""

    maps = True

    def install(self) -> Installed:
        """Installs nothing, because the plain forms need no kernels."""
        return Installed("torch", "it was asked for by name")

    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        """See `Backend`."""
        return serve(site, grids, PANELS)

    def operator(self, name: str) -> Callable[..., Tensor]:
        """The plain form of an operator, even where a kernel is installed."""
        return ops.PLAIN[name]
