"""Uniform: a pair of bounds for each range, with 2**bits - 1 equal steps between them (2DQuant, arXiv 2406.06649).

The bounds are stored in buffers (`lower0`, `width0`) and trained parameters (`shift`, `log_scale`), with
lower = lower0 + width0 * shift and width = width0 * exp(log_scale): the width stays positive whatever the optimizer
does, and learning rates are in units of the initial width. `absorb` leaves the forward pass unchanged bit for bit, and
so does storing `lower` and `width` and restoring them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxptq.errors import CalibrationError
from fxptq.quant import grid
from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import Quantizer, Role, Trainable
from fxptq.quant.scheme import UNIFORM, register
from fxptq.refusal import Refusal


@register(UNIFORM)
class Uniform(Quantizer):
    """Uniform quantizer, per tensor or per range of one axis; see `Quantizer` for the arguments.

    A range with `upper == lower` lets its values through unchanged.

    Attributes:
        shift: trained move of the lower bound in units of the initial width, [ranges].
        log_scale: trained logarithm of the width over the initial width, [ranges].
    """

    lower0: Tensor
    width0: Tensor

    def __init__(self, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__(bits, ranges, axis, role)
        self.register_buffer("lower0", torch.zeros(ranges, dtype=torch.float32))
        self.register_buffer("width0", torch.zeros(ranges, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(ranges, dtype=torch.float32))
        self.log_scale = nn.Parameter(torch.zeros(ranges, dtype=torch.float32))
        self._some_flat = True

    @property
    def lower(self) -> Tensor:
        """Lower ends of the clipping range, [ranges]."""
        return self.lower0 + self.width0 * self.shift

    @property
    def width(self) -> Tensor:
        """Upper - lower, >= 0, [ranges]; zero only where it was set to zero."""
        return self.width0 * self.log_scale.exp()

    @property
    def upper(self) -> Tensor:
        """Upper ends of the clipping range, [ranges]."""
        return self.lower + self.width

    @property
    def scale(self) -> Tensor:
        """Distance of two neighbouring grid values, [ranges]."""
        return self.width / grid.levels(self.bits)

    # -- values and codes ----------------------------------------------------------------------------------------------

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest values on the grid; `x` itself in ranges of zero width."""
        lower, width = self.spread(self.lower, x), self.spread(self.width, x)
        n = grid.levels(self.bits)
        if not self._some_flat:
            return grid.fake_quantize(x, width / n, lower, self.bits)
        flat = width == 0
        return torch.where(flat, x, grid.fake_quantize(x, width.masked_fill(flat, 1.0) / n, lower, self.bits))

    def encode(self, x: Tensor) -> Tensor:
        """uint8 codes of `x`, of its shape; 0 in a range of zero width, whose values no code can stand for."""
        scale = self.spread(self.scale, x)
        codes = grid.encode(x, scale, self.spread(self.lower, x), self.bits)
        return codes.masked_fill_(scale == 0, 0) if self._some_flat else codes

    def decode(self, codes: Tensor) -> Tensor:
        """Values of the grid that `codes` stand for, of their shape."""
        return grid.decode(codes, self.spread(self.scale, codes), self.spread(self.lower, codes))

    # -- bounds and state ----------------------------------------------------------------------------------------------

    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        """Set the clipping range; see `Quantizer`."""
        low = self.per_range(lower, self.lower0)
        self._set(low, self.per_range(upper, self.lower0) - low)

    def squared_error(self, values: Distribution, lower: Tensor, upper: Tensor) -> Tensor:
        """Squared error of rounding to the nearest value of each grid; see `Quantizer`."""
        return values.squared_error(lower, upper, self.bits)

    def stored(self) -> dict[str, Tensor]:
        """`lower` and `width`, [ranges] each."""
        return {"lower": self.lower0, "width": self.width0}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read back `lower` and `width`; see `Quantizer`."""
        if set(tensors) != {"lower", "width"}:
            raise CalibrationError(f"a uniform quantizer stores lower and width, not {', '.join(sorted(tensors))}")
        self._set(self.per_range(tensors["lower"], self.lower0), self.per_range(tensors["width"], self.lower0))

    def _set(self, lower: Tensor, width: Tensor) -> None:
        if not (lower.isfinite().all() and width.isfinite().all() and (width >= 0).all()):
            raise CalibrationError(
                f"bounds must be finite and upper >= lower, not lower {lower.tolist()[:4]}, width {width.tolist()[:4]}"
            )
        with torch.no_grad():
            self.lower0.copy_(lower)
            self.width0.copy_(width)
            self.shift.zero_()
            self.log_scale.zero_()
        self._note_flat_ranges()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._note_flat_ranges()

    def _note_flat_ranges(self) -> None:
        """Note in a Python value whether a range has zero width, so that `quantize` need not wait for tensor data."""
        self._some_flat = bool((self.width0 == 0).any())

    # -- training ------------------------------------------------------------------------------------------------------

    def trainables(self) -> tuple[Trainable, ...]:
        """`shift` and `log_scale`, which are in units of the initial width; none if every width is zero."""
        if not bool((self.width0 > 0).any()):
            return ()
        steps = grid.levels(self.bits)
        return Trainable(self.shift, steps), Trainable(self.log_scale, steps)

    def absorb(self) -> None:
        """Move the trained parameters into the stored bounds; the forward pass stays the same bit for bit."""
        self._set(self.lower.detach(), self.width.detach())

    def shorten(self) -> None:
        """Round the bounds of several ranges to half precision, unless one would move by more than its width / 2048.

        The values of a grid of 8 bits then move by up to a quarter of a step, and of one of 4 bits by a 68th.
        """
        lower, width = self.lower0.half().float(), self.width0.half().float()
        most = self.width0 / 2048
        if self.ranges > 1 and bool(
            (((lower - self.lower0).abs() <= most) & ((width - self.width0).abs() <= most)).all()
        ):
            self._set(lower, width)

    def is_sound(self) -> bool:
        """Whether the range is finite, and none has shrunk to nothing in float32."""
        lower, width = self.lower.detach(), self.width.detach()
        return bool((lower.isfinite() & width.isfinite() & ((width > 0) == (self.width0 > 0))).all())

    def figures(self) -> dict[str, float]:
        """The bounds, the largest move of a lower bound by training (in widths), and the mean factor of the widths."""
        with torch.no_grad():
            return super().figures() | {
                "moved": float(self.shift.abs().max()),
                "scaled": float(self.log_scale.exp().mean()),
            }

    # -- integers ------------------------------------------------------------------------------------------------------

    def grids(self) -> tuple[Grid, ...] | Refusal:
        """The grid of each range; the scale is 0 in a range of zero width."""
        with torch.no_grad():
            pairs = zip(self.scale.tolist(), self.lower.tolist(), strict=True)
            return tuple(Grid(scale, offset, self.bits) for scale, offset in pairs)
