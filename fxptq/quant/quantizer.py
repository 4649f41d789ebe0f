"""The Quantizer: one operand's grid, its bounds as parameters, and nothing else.

A quantizer is inserted on the edge into a matmul, linear or convolution. It is `off` until its bounds are set, may
`observe` the values that pass, and is then `on`. Its bounds live in buffers (`lower0`, `width0`) and trained offsets
(`shift`, `log_scale`): the width stays positive whatever the optimizer does, and learning rates are in units of the
initial width. `fold` leaves the forward pass unchanged bit for bit, and so does saving `lower` and `width` and setting
them again with `set_grid`.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fxptq.errors import CalibrationError, InputError
from fxptq.quant import grid

Mode = Literal["off", "observe", "on"]
Role = Literal["symmetric", "one_sided", "constant"]

BITS = range(2, 9)
"""Numbers of bits a quantizer can have."""


class Observer(Protocol):
    """Anything that takes in the values that pass a quantizer."""

    def update(self, x: Tensor) -> None:
        """Take in the values of one tensor."""
        ...


class Quantizer(nn.Module):
    """Uniform quantizer of one operand, per tensor or per group of one axis.

    Args:
        bits: 2 to 8.
        groups: number of equal contiguous blocks along `axis`, each with its own bounds: 1 is per tensor, 3 a fused
            qkv weight, the size of the axis is per channel.
        axis: the axis the groups range over; it matters only with more than one group.
        role: what is known of the values: `symmetric`, `one_sided` (after softmax, ReLU, ...) or `constant`.

    Attributes:
        mode: `off` and `observe` are the identity, `on` quantizes.
        observer: takes in what passes while the mode is `observe`.
        shift: trained move of the lower bound in units of the initial width, [groups].
        log_scale: trained logarithm of the width over the initial width, [groups].

    Raises:
        InputError: for bits outside 2..8, fewer than one group, or a role unknown.
    """

    lower0: Tensor
    width0: Tensor

    def __init__(self, bits: int, groups: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__()
        if bits not in BITS:
            raise InputError(f"a quantizer has {BITS.start} to {BITS.stop - 1} bits, not {bits}")
        if groups < 1:
            raise InputError(f"a quantizer has one group or more, not {groups}")
        if role not in ("symmetric", "one_sided", "constant"):
            raise InputError(f"a quantizer's role is symmetric, one_sided or constant, not {role!r}")
        self.bits, self.groups, self.axis, self.role = bits, groups, axis, role
        self.mode: Mode = "off"
        self.observer: Observer | None = None
        self.register_buffer("lower0", torch.zeros(groups))
        self.register_buffer("width0", torch.zeros(groups))
        self.shift = nn.Parameter(torch.zeros(groups))
        self.log_scale = nn.Parameter(torch.zeros(groups))
        self._some_flat = True

    @property
    def lower(self) -> Tensor:
        """Lower bounds, [groups]."""
        return self.lower0 + self.width0 * self.shift

    @property
    def width(self) -> Tensor:
        """Upper - lower, >= 0, [groups]; zero only where it was set to zero."""
        return self.width0 * self.log_scale.exp()

    @property
    def upper(self) -> Tensor:
        """Upper bounds, [groups]."""
        return self.lower + self.width

    @property
    def step(self) -> Tensor:
        """Distance of two neighbouring grid values, [groups]."""
        return self.width / grid.levels(self.bits)

    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        """Set the bounds and forget what was trained.

        Args:
            lower: a scalar, or [groups].
            upper: a scalar, or [groups], nowhere below `lower`. A group with `upper == lower` lets its values through
                unchanged.

        Raises:
            CalibrationError: if a bound is not finite or the upper one is below the lower.
        """
        low, high = self._per_group(lower), self._per_group(upper)
        self.set_grid(low, high - low)

    def set_grid(self, lower: Tensor | float, width: Tensor | float) -> None:
        """Set the stored form of the bounds, as a checkpoint holds it; see `set_bounds`.

        Args:
            lower: a scalar, or [groups].
            width: upper - lower, >= 0, a scalar or [groups].

        Raises:
            CalibrationError: if a bound is not finite or a width is negative.
        """
        low, wide = self._per_group(lower), self._per_group(width)
        if not (low.isfinite().all() and wide.isfinite().all() and (wide >= 0).all()):
            raise CalibrationError(
                f"bounds must be finite and upper >= lower, not lower {low.tolist()[:4]}, width {wide.tolist()[:4]}"
            )
        with torch.no_grad():
            self.lower0.copy_(low)
            self.width0.copy_(wide)
            self.shift.zero_()
            self.log_scale.zero_()
        self._note_flat_groups()

    def fold(self) -> None:
        """Move the trained part into the stored bounds; the forward pass stays the same bit for bit."""
        self.set_grid(self.lower.detach(), self.width.detach())

    def encode(self, x: Tensor) -> Tensor:
        """uint8 codes of `x`, of its shape; 0 throughout a group of zero width (which no code can stand for)."""
        lower, width = self._broadcast(x)
        codes = grid.encode(x, lower, width, self.bits)
        return codes.masked_fill_(width == 0, 0) if self._some_flat else codes

    def decode(self, codes: Tensor) -> Tensor:
        """Values of the grid that `codes` stand for, of their shape."""
        return grid.decode(codes, *self._broadcast(codes), self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself unless `on`, then the nearest values on the grid."""
        if self.mode == "on":
            lower, width = self._broadcast(x)
            if not self._some_flat:
                return grid.fake_quantize(x, lower, width, self.bits)
            flat = width == 0
            return torch.where(flat, x, grid.fake_quantize(x, lower, width.masked_fill(flat, 1.0), self.bits))
        if self.mode == "observe" and self.observer is not None:
            self.observer.update(x.detach())
        return x

    def extra_repr(self) -> str:
        """Bits, groups, role and mode."""
        where = f", groups={self.groups} along {self.axis}" if self.groups > 1 else ""
        return f"bits={self.bits}{where}, role={self.role}, mode={self.mode}"

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._note_flat_groups()

    def _per_group(self, value: Tensor | float) -> Tensor:
        given = torch.as_tensor(value, dtype=self.lower0.dtype, device=self.lower0.device).detach()
        if given.numel() not in (1, self.groups):
            raise InputError(
                f"a quantizer of {self.groups} groups takes 1 or {self.groups} bounds, not {given.numel()}"
            )
        return given.reshape(-1).expand(self.groups)

    def _note_flat_groups(self) -> None:
        """Remember on the Python side whether a group has zero width, so that `forward` need not look at data."""
        self._some_flat = bool((self.width0 == 0).any())

    def _broadcast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and width, broadcastable to `x`: [1], or the length of the axis followed by ones."""
        lower, width = self.lower, self.width
        if self.groups == 1:
            return lower, width
        size = x.shape[self.axis]
        if size % self.groups:
            raise InputError(
                f"{self.groups} groups do not divide axis {self.axis} of a tensor of shape {tuple(x.shape)}"
            )
        after = x.dim() - 1 - self.axis % x.dim()
        shape = (size,) + (1,) * after
        repeat = size // self.groups
        return lower.repeat_interleave(repeat).view(shape), width.repeat_interleave(repeat).view(shape)
