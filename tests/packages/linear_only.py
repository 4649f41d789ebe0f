"""A back end of another package: it computes linear layers by an operator of its own and refuses everything else."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fxptq.graph.sites import Site
from fxptq.kernels import ops
from fxptq.kernels.backend import Backend, Grids, Installed, Served, register
from fxptq.kernels.layouts import PANELS
from fxptq.kernels.limits import serve
from fxptq.refusal import Refusal

CALLS: list[str] = []


@register("linear_only")
class LinearOnly(Backend):
    """Counts its calls, and runs the operators in plain torch."""

    def install(self) -> Installed:
        return Installed("torch", "a test")

    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        return serve(site, grids, PANELS) if site.kind == "linear" else Refusal(f"linear_only has no {site.kind}")

    def operator(self, name: str) -> Callable[..., Tensor]:
        def call(*args: Tensor, **kwargs: object) -> Tensor:
            CALLS.append(name)
            return ops.PLAIN[name](*args, **kwargs)

        return call
