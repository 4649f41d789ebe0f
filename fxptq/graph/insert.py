"""Puts a Quantizer node on each operand edge of a captured graph and changes nothing else.

Factors that a call passes by keyword become its first arguments, because every reader of the graph expects them there.
Module names cannot hold dots, so a key such as `layers.0.attn.qkv.input` stands in the graph as
`quantizers.layers/0/attn/qkv/input`; characters that are no part of a usual name stand there by number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import fx

from fxptq.graph.sites import Site

_UNUSUAL = re.compile(r"[^\w.@-]")


def module_name(key: str) -> str:
    """A quantizer's key as a module name; no two keys have the same."""
    return _UNUSUAL.sub(lambda found: f"~{ord(found[0]):x}~", key).replace(".", "/")


def insert_quantizers(graph: fx.Graph, sites: Iterable[Site]) -> fx.Graph:
    """A copy of `graph` in which every operand with bits is read through its quantizer.

    Site nodes carry `meta["site"]` (the name), quantizer nodes `meta["quantizer"]` (the key) and the `follows`, `shape`
    and `dtype` of their input. Operands that read one tensor through one quantizer share one node; a quantizer that two
    operands share while they read different tensors (in a graph of another size) gets a node for each.

    Args:
        graph: as captured.
        sites: planned sites of that very graph.
    """
    inserted = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    by_node = {site.node: site for site in sites}
    by_name = {node.name: node for node in graph.nodes}
    quantized: dict[tuple[str, fx.Node], fx.Node] = {}
    for node in graph.nodes:
        site = by_node.get(node.name)
        edges: dict[fx.Node, fx.Node] = {}
        for operand in site.operands if site else ():
            if operand.bits is None:
                continue
            source = by_name[operand.source]
            read = operand.quantizer, source
            if read not in quantized:
                call = inserted.call_module(f"quantizers.{module_name(operand.quantizer)}", (copies[source],))
                call.meta = {
                    key: source.meta[key] for key in ("path", "follows", "shape", "dtype") if key in source.meta
                }
                call.meta["quantizer"] = operand.quantizer
                quantized[read] = call
            edges[source] = quantized[read]

        def operand_or_copy(source: fx.Node, edges: dict[fx.Node, fx.Node] = edges) -> fx.Node:
            return edges.get(source, copies[source])

        copies[node] = inserted.node_copy(node, operand_or_copy)
        if site is not None:
            copies[node].meta["site"] = site.name
            _put_factors_first(copies[node])
    inserted.lint()
    return inserted


_FACTORS = (("input", "self"), ("weight", "other", "mat2"))
"""The keywords of torch's functions for their first and their second factor."""


def _put_factors_first(node: fx.Node) -> None:
    """Makes `linear(x, weight=w)` a call `linear(x, w)`; a call without both factors stays unchanged."""
    names = [
        next((name for name in spellings if name in node.kwargs), None) for spellings in _FACTORS[len(node.args) :]
    ]
    if names and None not in names:
        by_keyword = dict(node.kwargs)
        node.args = (*node.args, *(by_keyword.pop(name) for name in names if name is not None))
        node.kwargs = by_keyword
