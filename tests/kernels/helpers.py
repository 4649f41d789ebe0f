"""The two forms of the operators, random codes and grids, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxptq.graph.geometry import Geometry
from fxptq.kernels import ops
from fxptq.kernels.layer import Layer, integer_layer
from fxptq.kernels.panels import pad_columns
from fxptq.kernels.products import ProductMap, product_map
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from fxptq.quant.schemes.uniform import Uniform


def codes(shape: tuple[int, ...], bits: int, kind: str = "random", seed: int = 0) -> Tensor:
    """Codes of `bits` bits: random, or the extremes: all lowest, all highest, or a random mix of the two."""
    top = 2**bits - 1
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randint(0, top + 1, shape, generator=g).to(torch.uint8)
    if kind == "extreme":
        return (torch.randint(0, 2, shape, generator=g) * top).to(torch.uint8)
    return torch.full(shape, {"lowest": 0, "highest": top}[kind], dtype=torch.uint8)


class Operators:
    """The operators of one implementation as attributes."""

    def __init__(self, native: bool) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        return getattr(torch.ops.fxptq, name) if self._native else ops.PLAIN[name]


KINDS = ("random", "extreme", "lowest", "highest")


def grid(bits: int, symmetry: str = "asymmetric", seed: int = 0) -> Grid:
    """The grid of a per-tensor quantizer."""
    (found,) = quantizer(bits, symmetry, seed=seed).grids()
    return found


def quantizer(bits: int, symmetry: str = "asymmetric", ranges: int = 1, seed: int = 0) -> Uniform:
    """A quantizer with random bounds: symmetric (-u, u), asymmetric around zero, or one-sided from zero."""
    g = torch.Generator().manual_seed(seed)
    upper = 0.3 + torch.rand(ranges, generator=g)
    lower = {
        "symmetric": -upper,
        "asymmetric": -0.1 - torch.rand(ranges, generator=g),
        "one_sided": torch.zeros(ranges),
    }[symmetry]
    made = Uniform(bits, ranges=ranges)
    made.set_bounds(lower, upper)
    made.mode = "on"
    return made


def layer_of(
    weight: Tensor, q: Uniform, bias: Tensor | None, input_grid: Grid, padding: tuple[int, ...] = (0, 0)
) -> Layer:
    """A layer with this float weight on the grids of its quantizer."""
    geometry = Geometry(padding=padding) if weight.dim() == 4 else None
    return integer_layer(q.encode(weight), q.coding(), bias, Coding((input_grid,)), geometry)


def onto(layer: Layer, target: Grid) -> Layer:
    """The layer with its output in units of the next grid: codes are the rounded and clipped output."""
    return layer.plus(-target.offset).times(1.0 / target.scale)


SUMS = {name: torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1) for name in ("left", "right")}
"""The units and shifts of a product whose output is the sums."""


def factors(left: Grid | Coding, right: Grid | Coding) -> ProductMap:
    """The factors of a product on their grids."""
    found = product_map(*(Coding((one,)) if isinstance(one, Grid) else one for one in (left, right)))
    assert isinstance(found, ProductMap), found.reason
    return found


def arguments_of(product: ProductMap) -> dict[str, Any]:
    """The arguments of `matmul` for the factors of a product."""
    return {name: getattr(product, name) for name in ("left", "right", "row_sums", "shares")}


def epilogue(**changes: Any) -> dict[str, Any]:
    """The arguments of an epilogue that does nothing, with changes."""
    plain = {
        "row_scale": None,
        "activation": 0,
        "slope": 0.0,
        "residual": None,
        "levels": None,
        "out_scale": None,
        "out_offset": None,
    }
    return plain | changes


def next_grid(target: Grid, columns: int) -> dict[str, Tensor]:
    """The arguments of an epilogue that put values on the next grid, the same for all columns."""
    return {
        "out_scale": pad_columns(torch.full((columns,), 1 / target.scale)),
        "out_offset": pad_columns(torch.full((columns,), target.zero_point)),
    }


def decoded(q: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The weight on its grid in float64."""
    step = q.scale.detach().double().repeat_interleave(len(weight) // q.ranges).view(-1, *[1] * (weight.dim() - 1))
    lower = q.lower.detach().double().repeat_interleave(len(weight) // q.ranges).view(step.shape)
    return q.encode(weight).double() * step + lower


def close(found: torch.Tensor, expected: torch.Tensor, terms: torch.Tensor | None = None) -> bool:
    """Equal to float32 rounding of a few operations on the largest value.

    Where a sum cancels, its rounding is that of its terms: `terms` has the sums of their absolute values.
    """
    largest = float((expected if terms is None else terms).abs().max())
    return float((found.double() - expected).abs().max()) <= 1e-6 * largest + 1e-7


def assert_codes(found: torch.Tensor, exact: torch.Tensor, levels: int) -> None:
    """Codes are those of the exact value in steps, but where that lies within float rounding of a tie."""
    expected = exact.clamp(0, levels).round()
    off = found.double() != expected
    tie = (exact - exact.floor() - 0.5).abs() < 2e-5
    assert not bool((off & ~tie).any())
    assert float(off.double().mean()) < 1e-3
