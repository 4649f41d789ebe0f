"""The limits of the bundled integer operators, each with its reason; the back ends share them."""

from __future__ import annotations

from math import prod

import torch

from fxptq.graph.sites import Site
from fxptq.kernels.backend import FloatLayer, FusedLayer, Grids, Product, Served
from fxptq.kernels.layouts import Layout
from fxptq.refusal import Refusal

_KINDS = frozenset(("linear", "conv2d", "conv_transpose2d", "matmul"))


def serve(site: Site, grids: Grids, layout: Layout) -> Served | Refusal:
    """How the bundled operators compute a site whose weights lie in `layout`, or the first limit that forbids it."""
    reason = limit(site, grids)
    if reason:
        return Refusal(reason)
    if site.kind == "matmul":
        return Product()
    (grid,), bits = grids["input"], grids["weight"][0].bits
    if site.kind == "linear":
        return FusedLayer(lambda layer: layout.linear(layer, layer.width(bits), grid))
    geometry = site.geometry
    assert geometry is not None  # noqa: S101  # every convolution has one
    if not layout.fuses(geometry, site.shapes["weight"], grid):
        return FloatLayer()
    return FusedLayer(lambda layer: layout.convolution(layer, layer.width(bits), grid, geometry))


def limit(site: Site, grids: Grids) -> str:
    """The reason why the operators cannot compute a site; empty if they can."""
    if site.kind not in _KINDS:
        return f"no integer kernel for {site.kind}"
    if site.dtype != torch.float32:
        return f"computes in {site.dtype}"
    return _limit_of_product(site, grids) if site.kind == "matmul" else _limit_of_layer(site, grids)


def _limit_of_layer(site: Site, grids: Grids) -> str:
    if len(grids["input"]) > 1 or grids["input"][0].scale == 0:
        return "the input has several ranges, or one of zero width"
    if site.kind != "linear" and len(site.shapes["input"]) != 4:
        return "no batch axis"
    if site.kind != "linear" and site.geometry is None:
        return "its stride, padding or dilation is computed from sizes"
    if not sums_fit(site.shapes["weight"]):
        return "its sums do not fit 32 bits"
    return ""


def _limit_of_product(site: Site, grids: Grids) -> str:
    if any(len(grids[slot]) > 1 or grids[slot][0].scale == 0 for slot in ("lhs", "rhs")):
        return "a factor has several ranges, or one of zero width"
    if min(len(site.shapes["lhs"]), len(site.shapes["rhs"])) < 2:
        return "a factor is a vector"
    return ""


def sums_fit(shape: tuple[int, ...]) -> bool:
    """Whether 32 bits hold every sum of 8-bit codes with a weight of this shape, [N, ...]."""
    return prod(shape[1:]) * 255 * 128 < 1 << 31
