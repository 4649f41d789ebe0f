"""The operands of an einsum call, and the number of products that it sums, in each spelling of the call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx


def einsum_operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensors of `einsum("ij,jk", a, b)`, `einsum("ij,jk", [a, b])` or `einsum(a, [0, 1], b, [1, 2])`."""
    from torch import fx  # noqa: PLC0415  # recipes read the table of kinds without torch

    args = node.args
    if isinstance(args[0], str):
        operands: Sequence[Any] = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
    else:
        operands = args[:-1:2] if len(args) % 2 else args[::2]
    return tuple(item for item in operands if isinstance(item, fx.Node))


def _labels(node: fx.Node) -> tuple[list[list[Any]], list[Any] | None]:
    """The labels of each operand's axes and of the output's; None for an output that is not given."""
    args = node.args
    if isinstance(args[0], str):
        left, arrow, right = args[0].replace(" ", "").replace("...", ".").partition("->")
        return [list(term) for term in left.split(",")], list(right) if arrow else None
    labels = [["." if label is Ellipsis else label for label in part] for part in _parts(args)]
    return (labels[:-1], labels[-1]) if len(args) % 2 else (labels, None)


def _parts(args: Sequence[Any]) -> list[Any]:
    return [*args[1::2], args[-1]] if len(args) % 2 else list(args[1::2])


def summed_size(node: fx.Node, shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of products that are added for each value of the output; 1 for a product element by element.

    Args:
        node: an einsum of a traced graph.
        shapes: the shapes of its operands.
    """
    terms, out = _labels(node)
    sizes: dict[Any, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        dots = len(shape) - len(term) + 1
        axes = iter(shape)
        for label in term:
            if label == ".":
                for _ in range(dots):
                    next(axes)
            else:
                sizes[label] = max(next(axes), sizes.get(label, 1))
    counts = [label for term in terms for label in term]
    in_output = {label for label in sizes if counts.count(label) == 1} if out is None else set(out)
    return math.prod(size for label, size in sizes.items() if label not in in_output)
