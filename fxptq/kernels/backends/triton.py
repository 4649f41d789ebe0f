"""The back end of NVIDIA GPUs: Triton kernels (kernels/cuda), with weights in rows at their stored width."""

from __future__ import annotations

from fxptq.graph.sites import Site
from fxptq.kernels.backend import Backend, Grids, Installed, Served, register
from fxptq.kernels.cuda import register as kernels
from fxptq.kernels.layouts import ROWS
from fxptq.kernels.limits import serve
from fxptq.refusal import Refusal


@register("triton")
class Triton(Backend):
    """Runs kernels that Triton compiles at their first call, or plain torch on the GPU where Triton cannot run."""

    device = "cuda"
    maps = True

    def install(self) -> Installed:
        """Registers the kernels for CUDA tensors."""
        return kernels.backend()

    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        """See `Backend`."""
        return serve(site, grids, ROWS)
