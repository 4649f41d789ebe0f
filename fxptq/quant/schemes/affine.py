"""Affine: a uniform grid behind a map with a factor and a center for each channel, head, or both.

    value = factor * (scale * code + offset) + center

The bounds speak of `(x - center) / factor`, so channels of different widths and centers share one grid. A sum over
channels stays a sum of codes: in a layer, the weight's quantizer has the factor 1 / f where the input's has f, and the
center adds a constant to each output. Kernels make the codes of a map with one multiply-add a channel. With the factor
1 and the center 0, which are the initial values, the quantizer equals `Uniform` bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxptq.errors import CalibrationError, InputError
from fxptq.quant import mapped
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import Role
from fxptq.quant.scheme import register
from fxptq.quant.schemes.uniform import Uniform
from fxptq.refusal import Refusal

_MAP = ("factor", "center")
_INVERSE = "inverse"


def _compact(factor: Tensor, center: Tensor) -> dict[str, Tensor]:
    """A map in as few bytes as give the same numbers back."""
    inverse = (1 / factor).half()
    by_factor = {"factor": factor.half() if _is_half(factor) else factor}
    by_inverse = not _is_half(factor) and torch.equal(1 / inverse.float(), factor)
    shift = center if bool(center.any()) else center.new_zeros(())
    return ({_INVERSE: inverse} if by_inverse else by_factor) | {"center": shift.half() if _is_half(shift) else shift}


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
    """

    factor: Tensor
    center: Tensor

    def __init__(self, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__(bits, ranges, axis, role)
        self.register_buffer("factor", torch.ones((), dtype=torch.float32))
        self.register_buffer("center", torch.zeros((), dtype=torch.float32))
        self._is_identity = True

    def set_map(self, factor: Tensor | float = 1.0, center: Tensor | float = 0.0) -> None:
        """Set the map. The bounds stay the same numbers, so they need to be set for the values behind the new map.

        Args:
            factor: > 0; see the attribute.
            center: see the attribute; the two are broadcast to one shape.

        Raises:
            CalibrationError: a number is not finite, or a factor is not positive.
        """
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
        self._note_identity()

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing, so that the quantizer is uniform."""
        return self._is_identity

    def _note_identity(self) -> None:
        """Note in a Python value whether the map is the identity, so that `quantize` need not wait for tensor data."""
        self._is_identity = bool((self.factor == 1).all() and (self.center == 0).all())

    # -- values and codes ----------------------------------------------------------------------------------------------

    def normalize(self, x: Tensor) -> Tensor:
        """`(x - center) / factor`, the values that the bounds speak of.

        Raises:
            InputError: the map does not broadcast to the axes of `x`.
        """
        if self._is_identity:
            return x
        self._check_fits(x)
        return (x - self.center) / self.factor

    def _check_fits(self, x: Tensor) -> None:
        shape = self.factor.shape
        trailing = x.shape[x.dim() - len(shape) :] if len(shape) <= x.dim() else ()
        if len(trailing) != len(shape) or any(own not in (1, size) for own, size in zip(shape, trailing, strict=True)):
            raise InputError(f"a map of shape {tuple(shape)} does not fit a tensor of shape {tuple(x.shape)}")

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest of `factor * grid + center`; see `Uniform`."""
        if self._is_identity or self.ranges > 1 or self._some_flat:
            return self._placed(super().quantize(self.normalize(x)))
        self._check_fits(x)
        return mapped.fake_quantize(x, self.scale, self.lower, self.factor, self.center, self.bits)

    def encode(self, x: Tensor) -> Tensor:
        """uint8 codes of `x`, of its shape; see `Uniform`."""
        return super().encode(self.normalize(x))

    def decode(self, codes: Tensor) -> Tensor:
        """The values `factor * grid + center` that `codes` stand for, of their shape."""
        return self._placed(super().decode(codes))

    def _placed(self, values: Tensor) -> Tensor:
        return values if self._is_identity else values * self.factor + self.center

    # -- state and integers --------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, Tensor]:
        """`lower` and `width`, [ranges] each; and `factor` (or its `inverse`) and `center` where they change something.

        Numbers that half precision holds exactly take two bytes each, and centers of zero one number in all.
        """
        return super().stored() | ({} if self._is_identity else _compact(self.factor, self.center))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read back the tensors of `stored`; see `Quantizer`."""
        own = {name: tensors[name].float() for name in (*_MAP, _INVERSE) if name in tensors}
        super().restore({name: tensor for name, tensor in tensors.items() if name not in own})
        if _INVERSE in own:
            own.setdefault("factor", 1 / own.pop(_INVERSE))
        if len(own) not in (0, len(_MAP)):
            raise CalibrationError("an affine quantizer stores factor and center, not one of the two")
        self.set_map(**own)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in _MAP:  # a map has the shape that its operand needs
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
        return Coding(grids, self.factor.detach(), self.center.detach())
