"""Reads the role of an operand from the graph: whether most values lie at a lower end, and the floor of the values.

A role must hold for every input, because bounds are searched from the floor upwards and a value below it is clipped.
Where a call, an option of it or a write in place may break the floor, the role is `symmetric`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import fx

from fxptq.graph.calls import LAYOUT, LOWEST, MIXING, argument, is_torchs_own, name_of
from fxptq.graph.tracer import IMAGE

Role = Literal["symmetric", "one_sided", "constant"]


def role_of(source: fx.Node, one_sided: Mapping[fx.Node, float | None]) -> tuple[Role, float | None]:
    """The role of the values of a node, and the floor of one-sided values where it is known.

    Args:
        source: a node of a captured graph.
        one_sided: the graph's `one_sided_values`.
    """
    if source.meta.get("follows") != IMAGE:
        return "constant", None
    return ("one_sided", one_sided[source]) if source in one_sided else ("symmetric", None)


def one_sided_values(graph: fx.Graph) -> dict[fx.Node, float | None]:
    """The nodes whose values mostly lie at their lower end, with the floor of the values where it is known.

    One pass over the graph: a call that hands values on has a floor if all its inputs have one.

    Args:
        graph: a captured graph.
    """
    floors: dict[fx.Node, float | None] = {}
    for node in graph.nodes:
        inputs = _first_inputs(node) if _hands_on(node) else ()
        if not inputs:
            if _is_one_sided(node):
                floors[node] = LOWEST[name_of(node)]
        elif all(source in floors for source in inputs):
            known = [floors[source] for source in inputs]
            if name_of(node) == "pad":
                known.append(_padding(node) or 0.0)
            exact = [floor for floor in known if floor is not None]
            floors[node] = min(exact) if len(exact) == len(known) else None
    return floors


def _first_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes among the first argument, given by position or by name, looking into lists (`cat`)."""
    head = argument(node, 0, "input", node.kwargs.get("tensors"))
    if isinstance(head, fx.Node):
        return (head,)
    if isinstance(head, (list, tuple)):
        return tuple(item for item in head if isinstance(item, fx.Node))
    return ()


def _is_one_sided(maker: fx.Node) -> bool:
    """Whether most of the values that a call makes lie at their lower end."""
    name = name_of(maker)
    if name not in LOWEST or not _keeps_its_word(maker):
        return False
    beta = argument(maker, 1, "beta", 1) if name == "softplus" else 1
    return isinstance(beta, (int, float)) and beta > 0  # softplus lies below zero where its beta does


def _keeps_its_word(node: fx.Node) -> bool:
    """Whether the call is torch's own function of that name, and nothing overwrites its values."""
    return not node.meta.get("written") and is_torchs_own(node.target)


def _hands_on(node: fx.Node) -> bool:
    """Whether the values of a call lie between the values of its inputs, zero, and its fill value."""
    name = name_of(node)
    if name not in LAYOUT | MIXING or not _keeps_its_word(node):
        return False
    if name in ("interpolate", "upsample"):
        # Cubic weights are partly negative: the curve leaves the range of its points.
        return bool(argument(node, 3, "mode", "nearest") != "bicubic")
    if name == "pad":
        return _padding(node) is not None
    if name == "avg_pool2d":
        return argument(node, 6, "divisor_override") is None
    same_bits = name == "view" and any(isinstance(x, torch.dtype) for x in (*node.args, *node.kwargs.values()))
    # `view(dtype)` reads the same bits as other numbers, and integers wrap around.
    return not same_bits and node.meta.get("dtype", torch.float32).is_floating_point


def _padding(node: fx.Node) -> float | None:
    """The number that a `pad` puts around its input, 0 where it repeats values; None if it is not known."""
    value = argument(node, 3, "value")
    if argument(node, 2, "mode", "constant") != "constant" or value is None:
        return 0.0
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
