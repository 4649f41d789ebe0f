"""Twins: programs of one network that differ in the values of its weights, such as a student and its teacher.

A graph depends on the network and on sizes, and not on the values of weights. So a program takes over what was proved
of a graph of its twin, instead of proving it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxptq.graph.calls import name_of

if TYPE_CHECKING:
    from fxptq.graph.program import Program, Shapes, Variant


class Twins:
    """All programs that are twins, as long as they live."""

    def __init__(self) -> None:
        self._programs: list[weakref.ref[Program]] = []

    def __reduce__(self) -> tuple[type[Twins], tuple[()]]:
        return Twins, ()  # a copy has no twin, because it may be changed in other ways

    def add(self, *programs: Program) -> None:
        """From now on, the programs are of them."""
        known = [own() for own in self._programs]
        new = [program for program in programs if not any(program is other for other in known)]
        self._programs = [weakref.ref(program) for program in (*known, *new) if program is not None]

    def of(self, own: Sequence[Variant]) -> list[Variant]:
        """The graphs that the programs have now, of sizes that no own graph was captured at."""
        sizes = {variant.shapes for variant in own}
        programs = (known() for known in self._programs)
        return [other for program in programs if program for other in program.variants if other.shapes not in sizes]


def example_of(shapes: Shapes, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs of given sizes, made of other inputs by repeating and cropping them."""
    return tuple(_resized(x, shape) for x, (shape, _) in zip(inputs, shapes, strict=True))


def same_form(first: fx.Graph, second: fx.Graph) -> bool:
    """Whether two graphs consist of the same calls in the same order."""
    return [_form(node) for node in first.nodes] == [_form(node) for node in second.nodes]


def _resized(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(shape):
        if x.shape[axis] != size:
            x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    return x


def _form(node: fx.Node) -> tuple[str, str]:
    # Tensors outside the model have names of their own in each program.
    return node.op, "" if node.op == "get_attr" else name_of(node)
