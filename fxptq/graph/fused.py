"""Finds the number of layers that are fused in one weight, from the channels that reach each factor of a product.

The answer comes from an experiment and does not depend on names: the layer's output is replaced by the number of each
channel, the calls that only move values are carried out on these numbers, and at each matrix product the numbers that
arrive are collected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxptq.graph.calls import LAYOUT, name_of
from fxptq.graph.kinds import kind_of
from fxptq.graph.tracer import IMAGE

_ELEMENTWISE = frozenset(
    [
        "mul",
        "div",
        "truediv",
        "normalize",
        "relu",
        "sigmoid",
        "tanh",
        "gelu",
        "silu",
        "softmax",
        "contiguous",
        "add",
        "sub",
        "neg",
        "elu",
    ]
)
_SCATTERED = (0, -1)
"""Stands for channels that are no contiguous block; a block of size 0 matches no other, so the weight is not split."""


def leading_to_products(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes from which calls that move values, or work element by element, lead to a product."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            name = name_of(user)
            if _is_product(user) or (user in found and (name in LAYOUT or name in _ELEMENTWISE)):
                found.add(node)
    return frozenset(found)


def _is_product(node: fx.Node) -> bool:
    kind = kind_of(node)
    return kind is not None and kind.is_product


def fused_parts(layer: fx.Node, axis: int, to_products: frozenset[fx.Node] | None = None) -> int:
    """The number of equal contiguous blocks of output channels that feed different factors of products; 1 if none do.

    Args:
        layer: a node of a captured graph, of a kind with a weight.
        axis: the axis of its output that holds the channels, counted from the end.
        to_products: the graph's `leading_to_products`, if that is known.
    """
    to_products = leading_to_products(layer.graph) if to_products is None else to_products
    if layer not in to_products:
        return 1
    shape = layer.meta["shape"]
    axis = len(shape) + axis
    channels = shape[axis]
    numbers = torch.arange(channels).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    values: dict[fx.Node, Any] = {layer: numbers.expand(shape).contiguous()}
    blocks: set[tuple[int, int]] = set()
    waiting = [layer]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if user.meta.get("follows") != IMAGE or user in values:
                continue
            if _is_product(user):
                blocks |= _block(values[node])
                continue
            moved = _carry_out(user, node, values) if user in to_products else None
            if moved is not None:
                values[user] = moved
                waiting.append(user)
    sizes = {last - first + 1 for first, last in blocks}
    covers = sum(last - first + 1 for first, last in blocks) == channels
    return len(blocks) if len(sizes) == 1 and covers else 1


def _block(value: Any) -> set[tuple[int, int]]:
    if not isinstance(value, Tensor):
        return set()
    channels = torch.bincount(value.flatten()).nonzero().flatten()  # in order, each once
    first, last = int(channels[0]), int(channels[-1])
    return {(first, last)} if last - first + 1 == len(channels) else {_SCATTERED}


def _carry_out(user: fx.Node, source: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The channel numbers after `user`; None when it does more than move them."""
    name = name_of(user)
    if name in _ELEMENTWISE:
        same = user.meta.get("shape") == source.meta.get("shape")
        return values[source] if same else None
    if name not in LAYOUT:
        return None
    arguments = dict(values)
    for node in user.all_input_nodes:
        if node not in arguments:
            if "value" not in node.meta:
                return None
            arguments[node] = node.meta["value"]
    args, kwargs = fx.node.map_arg((user.args, dict(user.kwargs)), arguments.__getitem__)
    try:
        if user.op == "call_method":
            return getattr(args[0], str(user.target))(*args[1:], **kwargs)
        assert callable(user.target)  # call_function's contract  # noqa: S101
        return user.target(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None
