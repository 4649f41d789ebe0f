"""Finds the parts of attentions in a graph: the query, key, attention weights and value among the factors of products.

An attention is a product whose rows go through a softmax over its last axis and into a second product as left factor.
It may be an attention over the pixels of a window, or over channels. Only calls on the way that move no value along the
last axis are followed, so that "constant over the keys" has a meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import fx

from fxptq.graph.calls import ADD, argument, name_of, words
from fxptq.graph.kinds import kind_of
from fxptq.graph.tracer import IMAGE

Part = Literal["", "query", "key", "attention", "value"]

PARTS: tuple[Part, ...] = ("query", "key", "attention", "value")

_MOVES = words("view reshape contiguous clone to type type_as float dropout squeeze unsqueeze")
"""Calls that leave the last axis in its place where they leave its size."""

_LOGITS = ADD | words("sub __sub__ mul __mul__ div truediv __truediv__ masked_fill")
"""Calls between the first product and the softmax."""


def attention_parts(graph: fx.Graph) -> dict[tuple[fx.Node, int], Part]:
    """The part of each factor of a product in an attention, by the product and the place of the factor, 0 or 1.

    Args:
        graph: as captured; its nodes carry shapes.
    """
    parts: dict[tuple[fx.Node, int], Part] = {}
    for node in graph.nodes:
        if name_of(node) != "softmax" or not _is_over_last_axis(node):
            continue
        for mix in _readers(node):
            parts |= {(mix, 0): "attention", (mix, 1): "value"}
        scores = set(_sources(node))
        if len(scores) == 1:
            product = scores.pop()
            parts |= {(product, 0): "query", (product, 1): "key"}
    return parts


def _is_over_last_axis(softmax: fx.Node) -> bool:
    shape = softmax.meta.get("shape", ())
    return len(shape) >= 2 and argument(softmax, 1, "dim") in (-1, len(shape) - 1)


def _is_product(node: fx.Node) -> bool:
    kind = kind_of(node)
    return kind is not None and kind.is_product and name_of(node) == "matmul"


def _same_rows(node: fx.Node, other: fx.Node) -> bool:
    """Whether two values have rows of one length along the last axis."""
    return bool(node.meta.get("shape", ())[-1:] == other.meta.get("shape", (0,))[-1:])


def _readers(softmax: fx.Node) -> Iterator[fx.Node]:
    """The products whose left factor is the softmax."""
    waiting = [softmax]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if _is_product(user):
                if user.args[:1] == (node,):
                    yield user
            elif name_of(user) in _MOVES and _same_rows(user, softmax):
                waiting.append(user)


def _sources(softmax: fx.Node) -> Iterator[fx.Node]:
    """The products that the softmax is computed from."""
    waiting = [source for source in softmax.all_input_nodes[:1] if _same_rows(source, softmax)]
    while waiting:
        node = waiting.pop()
        if _is_product(node):
            yield node
        elif name_of(node) in _MOVES | _LOGITS:
            waiting += [
                source
                for source in node.all_input_nodes
                if source.meta.get("follows") == IMAGE and _same_rows(source, softmax)
            ]
