"""Bit widths of weights and activations, and the ways in which people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from fxptq.errors import InputError

FLOAT: Literal["float"] = "float"


@dataclass(frozen=True)
class Bits:
    """Bit widths, 2 to 8.

    Attributes:
        w: bits of weights.
        a: bits of activations; both factors of an attention product are activations.
    """

    w: int
    a: int

    def __post_init__(self) -> None:
        for name, value in (("w", self.w), ("a", self.a)):
            if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= 8:
                raise InputError(f"bits {name}={value!r} is out of range: expected a whole number from 2 to 8")


def parse_bits(text: str) -> Bits | Literal["float"]:
    """Reads "W3A4", or "float".

    Raises:
        InputError: it is neither.
    """
    found = re.fullmatch(r"W(\d)A(\d)", text)
    if not found and text != FLOAT:
        raise InputError(f"{text!r}: expected bits as in W3A4, or float")
    return Bits(int(found[1]), int(found[2])) if found else FLOAT


BitsLike = Bits | int | tuple[int, int] | str
"""Bit widths as people write them: Bits(w=4, a=4), 4 for both, (4, 4), or "W4A4"."""


def as_bits(value: BitsLike) -> Bits:
    """Bit widths, however they are written.

    Raises:
        InputError: they are out of range, or written in another way.
    """
    if isinstance(value, Bits):
        return value
    if isinstance(value, str) and value != FLOAT:
        found = parse_bits(value)
        assert isinstance(found, Bits)  # FLOAT is the only other value  # noqa: S101
        return found
    if isinstance(value, Integral) and not isinstance(value, bool):
        return Bits(int(value), int(value))
    if isinstance(value, (tuple, list)) and len(value) == 2:
        w, a = (int(one) if isinstance(one, Integral) and not isinstance(one, bool) else one for one in value)
        return Bits(w, a)
    raise InputError(f"the bits are {value!r}; expected fxptq.Bits(w=4, a=4), 4 for both, (4, 4), or 'W4A4'")
