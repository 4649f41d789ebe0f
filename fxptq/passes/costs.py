"""The costs of bit widths that a budget limits: bit operations, and the bytes of codes."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from fxptq.passes.allocation import Term
from fxptq.passes.base import QuantizedNetwork


def bit_operations(student: QuantizedNetwork) -> tuple[Term, ...]:
    """The work of each site with two quantized operands: multiply-accumulates times both widths.

    Multiply-accumulates are counted at the size of the example.
    """
    terms = []
    for site in student.sites:
        keys = [operand.quantizer for operand in site.operands if operand.quantizer]
        if len(keys) == 2:
            terms.append(Term(float(site.macs), *keys))
    return tuple(terms)


def code_bits(student: QuantizedNetwork, coded: Collection[str]) -> tuple[Term, ...]:
    """The bits of the codes of each weight.

    Args:
        student: the network.
        coded: the quantizers of weights that are stored as codes.
    """
    weights = {key: student.weight_of(key) for key in coded}
    return tuple(Term(float(prod(weight.shape)), key) for key, weight in weights.items() if weight is not None)
