"""Bit widths of weights and activations, budgets for them, and the ways in which people write both."""

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


@dataclass(frozen=True)
class Budget:
    """What a network may cost when each operand gets its own bits; one of the attributes is given.

    Attributes:
        average: average width, 2 to 8: no more bit operations, and no more bytes of codes, than with this width.
        file_bytes: size of the checkpoint in bytes; the widths of weights are chosen.
        operations: bit operations at the size of the example: multiply-accumulates times both widths.
        max_drop: largest loss of PSNR in dB on pictures that are not used for calibration; the fewest bits are chosen.
    """

    average: float | None = None
    file_bytes: int | None = None
    operations: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError("give one budget: average bits, bytes, bit operations, or a largest drop in dB")
        if self.average is not None and not 2 <= self.average <= 8:
            raise InputError(f"an average of {self.average:g} bits is out of range: expected 2 to 8")
        if not 0 < next(iter(given.values())) < 1e30:
            raise InputError(f"the budget is {next(iter(given.values())):g}; expected a number above 0")

    @property
    def label(self) -> str:
        """A short name for file names: b3, 600000B, 1.2e+10bop, drop0.1."""
        if self.average is not None:
            return f"b{self.average:g}"
        if self.file_bytes is not None:
            return f"{self.file_bytes}B"
        return f"{self.operations:g}bop" if self.operations is not None else f"drop{self.max_drop:g}"


BudgetLike = Budget | float | str
"""A budget as people write it: Budget(...), 3.0 for average bits, "600k" for bytes, "12Gbop" for bit operations."""

_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def as_budget(value: BudgetLike) -> Budget:
    """A budget, however it is written.

    Raises:
        InputError: it is out of range, or written in another way.
    """
    if isinstance(value, Budget):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kMGT]?)(B|bop)?", str(value).strip())
    if not found or isinstance(value, bool):
        raise InputError(
            f"budget {value!r}; expected average bits as in 3.0, bytes as in 600k, or bit operations as in 12Gbop"
        )
    number, multiple, unit = float(found[1]), found[2], found[3]
    if not multiple and not unit:
        return Budget(average=number)
    amount = number * _MULTIPLES[multiple]
    return Budget(operations=amount) if unit == "bop" else Budget(file_bytes=int(amount))
