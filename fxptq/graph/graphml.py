"""A network's flow as GraphML, for graph viewers and for scripts."""

from __future__ import annotations

import io
from collections.abc import Iterable

import networkx as nx
from torch import fx

from fxptq.graph.sites import Site
from fxptq.graph.topology import flow


def as_graphml(graph: fx.Graph, sites: Iterable[Site]) -> bytes:
    """The flow of the image through a network as GraphML, sites with their kind, role, cost and bits.

    Args:
        graph: a captured graph.
        sites: its sites.
    """
    drawn = flow(graph)
    for site in sites:
        weight_bits, activation_bits = site.bits
        drawn.nodes[site.node].update(
            site=site.name,
            kind=site.kind,
            role=site.role,
            macs=site.macs,
            bits_w=weight_bits or 32,
            bits_a=activation_bits or 32,
        )
    written = io.BytesIO()
    nx.write_graphml(drawn, written)
    return written.getvalue()
