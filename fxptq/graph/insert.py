"""Puts a Quantizer node on each operand edge of a captured graph and changes nothing else.

Module names cannot hold dots, so a key such as `layers.0.attn.qkv.input` stands in the graph as
`quantizers.layers/0/attn/qkv/input`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from fxptq.graph.sites import Site


def module_name(key: str) -> str:
    """A quantizer's key as a module name."""
    return key.replace(".", "/")


def insert_quantizers(graph: fx.Graph, sites: Iterable[Site]) -> fx.Graph:
    """A copy of `graph` in which every operand with bits is read through its quantizer.

    Site nodes carry `meta["site"]` (the name), quantizer nodes `meta["quantizer"]` (the key) and the `follows`, `shape`
    and `dtype` of what they quantize. Operands that read one tensor through one quantizer share one node; a quantizer
    that two operands share while they read different tensors (in a graph of another size) gets a node for each.

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
    inserted.lint()
    return inserted
