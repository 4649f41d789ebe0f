"""The Quantizer: the module on the edge into a matmul, linear layer or convolution, whatever its scheme.

A quantizer is `off` until its bounds are set, may `observe` the values that pass, and is then `on`. A scheme is a
subclass (fxptq.quant.scheme). It decides how values become codes, and therefore the tensors that a checkpoint stores,
the clipping ranges, the parameters that distillation trains, and the grid that integer kernels may use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.quant.coding import Coding
from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import Grid
from fxptq.refusal import Refusal

Mode = Literal["off", "observe", "on"]
Role = Literal["symmetric", "one_sided", "constant"]

BITS = range(2, 9)
"""Numbers of bits a quantizer can have."""

ROLES: tuple[Role, ...] = ("symmetric", "one_sided", "constant")


class Observer(Protocol):
    """Anything that takes in the values that pass a quantizer."""

    def update(self, x: Tensor) -> None:
        """Take in the values of one tensor."""
        ...


@dataclass(frozen=True)
class Trainable:
    """A parameter that distillation trains.

    Attributes:
        parameter: a parameter of any shape.
        steps: the number of grid steps by which a change of 1 moves a bound. Learning rates are given in steps, so that
            one rate fits quantizers of every width and number of bits.
    """

    parameter: nn.Parameter
    steps: float


class Quantizer(nn.Module, ABC):
    """Quantizer of one operand, per tensor or per range of one axis.

    Args:
        bits: 2 to 8.
        ranges: number of equal contiguous blocks along `axis`, each with its own bounds: 1 is per tensor, 3 a fused
            qkv weight, the size of the axis is per channel.
        axis: the axis that the ranges divide; it matters only with more than one range.
        role: the distribution of the values: `symmetric`, `one_sided` (after softmax, ReLU, ...) or `constant`.

    Attributes:
        scheme: the name that the class is registered under; set by `fxptq.quant.scheme.register`.
        stores_codes: whether codes and `stored()` give a tensor back, so that a checkpoint can hold a weight as codes.
        mode: `off` and `observe` are the identity, `on` quantizes.
        observer: takes in the values that pass while the mode is `observe`.

    Raises:
        InputError: for bits outside 2..8, fewer than one range, or an unknown role.
    """

    scheme: ClassVar[str] = ""
    stores_codes: ClassVar[bool] = True

    def __init__(self, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__()
        if ranges < 1:
            raise InputError(f"a quantizer has one range or more, not {ranges}")
        if role not in ROLES:
            raise InputError(f"a quantizer's role is symmetric, one_sided or constant, not {role!r}")
        self.ranges, self.axis, self.role = ranges, axis, role
        self.set_bits(bits)
        self.mode: Mode = "off"
        self.observer: Observer | None = None

    def set_bits(self, bits: int) -> None:
        """Give the grid another width between the same bounds.

        Raises:
            InputError: `bits` is not in 2..8.
        """
        if bits not in BITS:
            raise InputError(f"a quantizer has {BITS.start} to {BITS.stop - 1} bits, not {bits}")
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """The quantized values of `x` if the mode is `on`; otherwise `x` itself."""
        if self.mode == "on":
            return self.quantize(x)
        if self.mode == "observe" and self.observer is not None:
            self.observer.update(self.normalize(x.detach()))
        return x

    # -- values and codes ----------------------------------------------------------------------------------------------

    @abstractmethod
    def quantize(self, x: Tensor) -> Tensor:
        """The quantized values of `x`, of its shape; differentiable in `x` and in `trainables()`."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """uint8 codes 0 .. 2**bits - 1 of `x`, of its shape."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """The values that `codes` stand for, of their shape; only where `stores_codes`."""

    def normalize(self, x: Tensor) -> Tensor:
        """The values of `x` in the unit of the bounds, of its shape: `x` itself unless the scheme maps it first."""
        return x

    # -- bounds --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        """Set the clipping range and discard the trained values.

        Args:
            lower: a scalar, or [ranges].
            upper: a scalar, or [ranges], nowhere below `lower`.

        Raises:
            CalibrationError: if a bound is not finite or the upper one is below the lower.
        """

    @property
    @abstractmethod
    def lower(self) -> Tensor:
        """Lower ends of the clipping range, [ranges]."""

    @property
    @abstractmethod
    def upper(self) -> Tensor:
        """Upper ends of the clipping range, [ranges]."""

    def admissible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The possible clipping ranges of the scheme that are nearest to the proposals of a search.

        Args:
            lower: proposals, [ranges, candidates], float64.
            upper: proposals of the same shape, nowhere below `lower`.
        """
        return lower, upper

    @abstractmethod
    def squared_error(self, values: Distribution, lower: Tensor, upper: Tensor) -> Tensor:
        """Squared error of quantizing `values` in each of many admissible clipping ranges.

        Args:
            values: the values that the quantizer sees.
            lower: lower ends, [ranges, candidates], float64.
            upper: upper ends, of the same shape.

        Returns:
            Sums of squares, [ranges, candidates].
        """

    # -- state ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def stored(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores, by name; they hold no trained values before `absorb`."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read back the tensors of `stored`; the forward pass is then the same bit for bit.

        Raises:
            CalibrationError: the tensors are no state of this scheme.
        """

    # -- training ------------------------------------------------------------------------------------------------------

    def trainables(self) -> tuple[Trainable, ...]:
        """The parameters that distillation trains; none by default."""
        return ()

    def absorb(self) -> None:  # a scheme that trains nothing has nothing to absorb
        """Move the trained values into the stored tensors; the forward pass stays the same bit for bit."""

    def shorten(self) -> None:  # a scheme may have no numbers for which fewer bytes are enough
        """Round stored numbers to fewer bytes where values move by a small part of a step; codes stay what they are."""

    def is_sound(self) -> bool:
        """Whether training has left every number finite and no range has shrunk to nothing."""
        return True

    def figures(self) -> dict[str, float]:
        """The figures that reports show, by name."""
        with torch.no_grad():
            return {"lower": float(self.lower.min()), "upper": float(self.upper.max())}

    # -- integers ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def grids(self) -> tuple[Grid, ...] | Refusal:
        """The grid of each range, for integer kernels and exporters; a refusal if codes stand for no fixed values."""

    def coding(self) -> Coding | Refusal:
        """How codes stand for values, for kernels that carry more than grids; a refusal if none can."""
        grids = self.grids()
        return grids if isinstance(grids, Refusal) else Coding(grids)

    # -- shared by schemes ---------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Bits, ranges, role and mode."""
        where = f", ranges={self.ranges} along {self.axis}" if self.ranges > 1 else ""
        return f"bits={self.bits}{where}, role={self.role}, mode={self.mode}"

    def per_range(self, value: Tensor | float, like: Tensor) -> Tensor:
        """A number, or one for each range, as a tensor [ranges] with the type and device of `like`.

        Raises:
            InputError: `value` has another number of elements.
        """
        numbers = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
        if numbers.numel() not in (1, self.ranges):
            raise InputError(
                f"a quantizer of {self.ranges} ranges takes 1 or {self.ranges} bounds, not {numbers.numel()}"
            )
        return numbers.reshape(-1).expand(self.ranges)

    def spread(self, per_range: Tensor, x: Tensor) -> Tensor:
        """Numbers [ranges] in a shape that broadcasts to `x`: [1], or the length of the axis followed by ones.

        Raises:
            InputError: the ranges do not divide the axis of `x`.
        """
        if self.ranges == 1:
            return per_range
        size = x.shape[self.axis]
        if size % self.ranges:
            raise InputError(
                f"{self.ranges} ranges do not divide axis {self.axis} of a tensor of shape {tuple(x.shape)}"
            )
        after = x.dim() - 1 - self.axis % x.dim()
        if size > self.ranges:
            per_range = per_range.repeat_interleave(size // self.ranges)
        return per_range.view((size,) + (1,) * after)
