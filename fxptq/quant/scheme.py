"""The registry of schemes, the ways to turn values into codes.

A scheme is a subclass of `Quantizer` under `@register("name")`. Every operand that uses a scheme holds its name
(`Operand.scheme`), and so does the checkpoint. Adding a scheme is adding a file to fxptq/quant/schemes, or, from
another package, an entry point in the group `fxptq.schemes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fxptq.quant.quantizer import Quantizer, Role
from fxptq.registry import Registry

Scheme = type[Quantizer]
"""A class of quantizers: called with bits, ranges, axis and role, it makes the module of one operand."""

UNIFORM = "uniform"
"""The scheme of every operand that names no other."""

_SCHEMES: Registry[Quantizer] = Registry("scheme", "fxptq.schemes", "fxptq.quant.schemes")

S = TypeVar("S", bound=Scheme)


def register(name: str) -> Callable[[S], S]:
    """Class decorator that makes a scheme known under `name`.

    Raises:
        InputError: if the name is taken by another class; nothing is registered then.
    """

    def add(cls: S) -> S:
        _SCHEMES.add(name, cls)
        cls.scheme = name
        return cls

    return add


def scheme_names() -> list[str]:
    """Names of all schemes, those of other packages too, sorted."""
    return _SCHEMES.names()


def get_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        InputError: if no scheme or two have that name, or the package cannot be imported.
    """
    return _SCHEMES.get(name)


def make_quantizer(scheme: str, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> Quantizer:
    """The quantizer of one operand; see `Quantizer` for the arguments.

    Raises:
        InputError: there is no such scheme, or an argument is out of range.
    """
    return get_scheme(scheme)(bits, ranges=ranges, axis=axis, role=role)
