"""Affine: a uniform grid behind a map with a factor and a center for each channel, head, or both.

    value = 2**exponent * factor * (scale * code + offset) + center

The bounds speak of `(x - center) / factor`, so channels of different widths and centers share one grid. A sum over
channels stays a sum of codes: in a layer, the weight's quantizer has the factor 1 / f where the input's has f, and the
center adds a constant to each output. Kernels make the codes of a map with one multiply-add a channel. With the factor
1, the center 0 and no exponents, which are the initial values, the quantizer equals `Uniform` bit for bit.

Exponents are for weights: a column of a weight, which is one tap of one input channel, has 2**exponent times the step
of its row. The sum stays one of integers, because a kernel takes (code - zero point) * 2**exponent for the weight, as
long as this fits a byte. The zero point is then a whole number, so that no sum of the input's codes is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxptq.errors import CalibrationError, InputError
from fxptq.quant import grid, mapped
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import BITS, Role, Trainable
from fxptq.quant.scheme import register
from fxptq.quant.schemes.uniform import Uniform
from fxptq.quant.schemes.zero_on_grid import with_zero
from fxptq.refusal import Refusal

_MAP = ("factor", "center")
_INVERSE = "inverse"
_EXPONENTS = "exponents"


def _compact(factor: Tensor, center: Tensor) -> dict[str, Tensor]:
    """A map in as few bytes as give the same numbers back."""
    inverse = (1 / factor).half()
    by_factor = {"factor": factor.half() if _is_half(factor) else factor}
    by_inverse = not _is_half(factor) and torch.equal(1 / inverse.float(), factor)
    shift = center if bool(center.any()) else center.new_zeros(())
    return ({_INVERSE: inverse} if by_inverse else by_factor) | {"center": shift.half() if _is_half(shift) else shift}


def most_exponent(bits: int) -> int:
    """The largest exponent with which codes less a zero point, up to 2**bits - 1, fit a signed byte."""
    return (127 // grid.levels(bits)).bit_length() - 1 if bits < BITS[-1] else 0


def _is_half(x: Tensor) -> bool:
    return torch.equal(x.half().float(), x)


def short(x: Tensor) -> Tensor:
    """Rounds the numbers of a map to half precision, in which a file holds them in two bytes.

    Returns:
        The rounded numbers; the numbers as they are where one is too large, or would become zero.
    """
    rounded = x.half().float()
    lost = not bool(rounded.isfinite().all()) or bool(((rounded == 0) != (x == 0)).any())
    return x if lost else rounded


@register("affine")
class Affine(Uniform):
    """Uniform quantizer of `(x - center) / factor`; see `Quantizer` for the arguments.

    A range with `upper == lower` lets its values through, up to the rounding of the map.

    Attributes:
        factor: > 0, of a shape that broadcasts to the trailing axes of the operand: [C] for the input and the weight of
            a linear layer, [C, 1, 1] for those of a convolution, [H, 1, d] for H heads of d channels; [] at first.
        center: of the shape of `factor`, in the unit of the operand.
        exponents: uint8, of a shape that broadcasts to the trailing axes of a weight; [] and 0 at first. A width whose
            codes leave no room for an exponent takes the largest that it has room for (`most_exponent`).
    """

    factor: Tensor
    center: Tensor
    exponents: Tensor

    def __init__(self, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__(bits, ranges, axis, role)
        self.register_buffer("factor", torch.ones((), dtype=torch.float32))
        self.register_buffer("center", torch.zeros((), dtype=torch.float32))
        self.register_buffer(_EXPONENTS, torch.zeros((), dtype=torch.uint8))
        self._is_identity, self._is_stepped = True, False

    def set_map(
        self, factor: Tensor | float = 1.0, center: Tensor | float = 0.0, exponents: Tensor | None = None
    ) -> None:
        """Set the map. The bounds stay the same numbers, so they need to be set for the values behind the new map.

        Args:
            factor: > 0; see the attribute.
            center: see the attribute; the two are broadcast to one shape.
            exponents: see the attribute; None for none.

        Raises:
            CalibrationError: a number is not finite, a factor is not positive, or exponents are no bytes.
        """
        if exponents is not None and exponents.dtype != torch.uint8:
            raise CalibrationError(f"the exponents of a map are of the type torch.uint8, not {exponents.dtype}")
        like = self.lower0
        pair = [torch.as_tensor(t, dtype=like.dtype, device=like.device).detach() for t in (factor, center)]
        try:
            shape = (pair[0] + pair[1]).shape
        except RuntimeError as error:
            raise CalibrationError(f"a map has a factor and a center of one shape: {error}") from None
        new_factor, new_center = (t.expand(shape).clone() for t in pair)
        if not (new_factor.isfinite().all() and new_center.isfinite().all() and (new_factor > 0).all()):
            raise CalibrationError("the factors of a map must be finite and positive, and its centers finite")
        self.factor, self.center = new_factor, new_center
        none = torch.zeros((), dtype=torch.uint8)
        self.exponents = (none if exponents is None else exponents.detach().clone()).to(like.device)
        self._note_identity()

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing, so that the quantizer is uniform."""
        return self._is_identity

    def _note_identity(self) -> None:
        """Note in Python values what the map changes, so that `quantize` need not wait for tensor data."""
        self._is_stepped = bool(self.exponents.any())
        self._is_identity = not self._is_stepped and bool((self.factor == 1).all() and (self.center == 0).all())

    @property
    def multiples(self) -> Tensor:
        """What the steps of columns are multiplied by, powers of two of the shape of `exponents`, float32."""
        return torch.exp2(self.exponents.clamp(max=most_exponent(self.bits)).float())

    @property
    def _whole(self) -> Tensor:
        """The factor of every value behind the grid."""
        return self.factor * self.multiples if self._has_multiples else self.factor

    @property
    def _has_multiples(self) -> bool:
        """Whether the steps of some columns are multiplied at the present width."""
        return self._is_stepped and most_exponent(self.bits) > 0

    # -- bounds: with exponents, 0 has a code --------------------------------------------------------------------------

    @property
    def lower(self) -> Tensor:
        """Lower ends of the clipping range, [ranges]."""
        return self.lower0 * self.log_scale.exp() if self._is_stepped else super().lower

    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        """Set the clipping range, moved to give 0 a code where there are exponents; see `Quantizer`."""
        low, high = (self.per_range(bound, self.lower0) for bound in (lower, upper))
        sound = bool(low.isfinite().all() and high.isfinite().all() and (high >= low).all())
        self._set(*(with_zero(low, high, self.bits) if self._is_stepped and sound else (low, high - low)))

    def admissible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Where there are exponents, the proposals extended and moved to give 0 a code; see `Quantizer`."""
        if not self._is_stepped:
            return lower, upper
        low, width = with_zero(lower, upper, self.bits)
        return low, low + width

    def shorten(self) -> None:
        """As `Uniform`; bounds stay where there are exponents, because rounding one would take 0 off the grid."""
        if not self._is_stepped:
            super().shorten()

    def trainables(self) -> tuple[Trainable, ...]:
        """As `Uniform`, without the move of the lower bound where there are exponents."""
        return super().trainables()[1:] if self._is_stepped else super().trainables()

    # -- values and codes ----------------------------------------------------------------------------------------------

    def normalize(self, x: Tensor) -> Tensor:
        """`(x - center) / factor`, the values that the bounds speak of.

        Raises:
            InputError: the map does not broadcast to the axes of `x`.
        """
        if self._is_identity:
            return x
        self._check_fits(x)
        return (x - self.center) / self._whole

    def _check_fits(self, x: Tensor) -> None:
        for shape in (self.factor.shape, self.exponents.shape if self._has_multiples else ()):
            trailing = x.shape[x.dim() - len(shape) :] if len(shape) <= x.dim() else ()
            fits = len(trailing) == len(shape)
            if not fits or any(own not in (1, size) for own, size in zip(shape, trailing, strict=True)):
                raise InputError(f"a map of shape {tuple(shape)} does not fit a tensor of shape {tuple(x.shape)}")

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest of `factor * grid + center`; see `Uniform`."""
        if self._is_identity or self.ranges > 1 or self._some_flat:
            return self._placed(super().quantize(self.normalize(x)))
        self._check_fits(x)
        return mapped.fake_quantize(x, self.scale, self.lower, *self._placing, self.bits)

    def encode(self, x: Tensor) -> Tensor:
        """uint8 codes of `x`, of its shape; see `Uniform`."""
        return super().encode(self.normalize(x))

    def decode(self, codes: Tensor) -> Tensor:
        """The values `factor * grid + center` that `codes` stand for, of their shape."""
        return self._placed(super().decode(codes))

    def _placed(self, values: Tensor) -> Tensor:
        if self._is_identity:
            return values
        factor, center = self._placing
        return values * factor + center

    @property
    def _placing(self) -> tuple[Tensor, Tensor]:
        """The factor and the center of all values, of one shape."""
        whole = self._whole
        return whole, self.center.expand(whole.shape) if self._has_multiples else self.center

    # -- state and integers --------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, Tensor]:
        """`lower` and `width`, [ranges] each; and `factor` (or its `inverse`) and `center` where they change something.

        Numbers that half precision holds exactly take two bytes each, and centers of zero one number in all. Exponents
        are stored as the width takes them, where there are any.
        """
        if self._is_identity:
            return super().stored()
        own = {_EXPONENTS: self.exponents.clamp(max=most_exponent(self.bits))} if self._is_stepped else {}
        return super().stored() | _compact(self.factor, self.center) | own

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read back the tensors of `stored`; see `Quantizer`."""
        own = {name: tensors[name].float() for name in (*_MAP, _INVERSE) if name in tensors}
        named = {*own, _EXPONENTS}
        super().restore({name: tensor for name, tensor in tensors.items() if name not in named})
        if _INVERSE in own:
            own.setdefault("factor", 1 / own.pop(_INVERSE))
        if len(own) not in (0, len(_MAP)):
            raise CalibrationError("an affine quantizer stores factor and center, not one of the two")
        self.set_map(**own, exponents=tensors.get(_EXPONENTS))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in (*_MAP, _EXPONENTS):  # a map has the shape that its operand needs
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(getattr(self, name).expand(stored.shape)))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._note_identity()

    def grids(self) -> tuple[Grid, ...] | Refusal:
        """The grid of each range if the map is the identity."""
        if self._is_identity:
            return super().grids()
        return Refusal("its channels have factors and centers of their own")

    def coding(self) -> Coding | Refusal:
        """The grid of each range and the map."""
        grids = super().grids()
        if isinstance(grids, Refusal) or self._is_identity:
            return super().coding()
        factor, center = self._placing
        multiples = self.multiples if self._has_multiples else None
        return Coding(grids, factor.detach(), center.detach(), multiples=multiples)
