"""The flow of a network as a networkx graph: the nodes on every path, and the ends of its residual stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
from torch import fx

from fxptq.graph.calls import ADD, name_of
from fxptq.graph.kinds import kind_of
from fxptq.graph.tracer import IMAGE


def flow(graph: fx.Graph) -> nx.DiGraph:
    """The calls that depend on the image, by node name, with an edge from each value to its readers."""
    found = nx.DiGraph()
    for node in graph.nodes:
        if node.meta.get("follows") == IMAGE or node.op == "output":
            found.add_node(node.name, call=name_of(node) or node.op, path=node.meta.get("path", ""))
            for source in node.all_input_nodes:
                if source.meta.get("follows") == IMAGE:
                    found.add_edge(source.name, node.name)
    return found


def _must_pass(graph: nx.DiGraph, start: str, end: str) -> list[str]:
    """The nodes every path from start to end goes through, both included, in order.

    In the order of execution, these are the nodes over which no edge jumps.
    """
    order = _between(graph, start, end)
    positions = {name: position for position, name in enumerate(order)}
    chain, furthest = [], 0
    for position, name in enumerate(order):
        if furthest <= position:
            chain.append(name)
        furthest = max([furthest, *(positions[reader] for reader in graph.successors(name) if reader in positions)])
    return chain


def _between(graph: nx.DiGraph, start: str, end: str) -> list[str]:
    """The nodes on paths from start to end, both included, in the order of execution."""
    inside = (nx.descendants(graph, start) & nx.ancestors(graph, end)) | {start, end}
    return [name for name in graph if name in inside]


def _skip(graph: nx.DiGraph, start: str, end: str) -> str | None:
    """The operand of `end` that ends the body, if `end` is a residual add around all nodes since `start`; else None."""
    if graph.nodes[end]["call"] not in ADD:
        return None
    body = [
        source for source in graph.predecessors(end) if source != start and len(_must_pass(graph, start, source)) > 1
    ]
    operands = list(graph.predecessors(end))
    if len(operands) != 2 or not body:
        return None
    inside = nx.descendants(graph, start)
    depth = {source: len(nx.ancestors(graph, source) & inside) for source in operands if source in inside}
    return max(depth, key=lambda source: depth[source]) if depth else None


@dataclass(frozen=True)
class Skeleton:
    """The nodes on every path from the image to the output.

    Attributes:
        trunk: the nodes outside all residual branches except the longest: in SwinIR and EDSR the first convolution, the
            convolution that ends the body, and the up-sampling; empty for a network without a long skip.
        stages: the nodes at which residual stages end, in order.
    """

    trunk: frozenset[str]
    stages: tuple[str, ...]


def skeleton(graph: fx.Graph) -> Skeleton:
    """The trunk and the residual stages of a network.

    The chain of nodes every path goes through is followed; where a long skip spans most of the network, its body is
    entered, so that in SwinIR the stages are the outputs of the residual groups and in EDSR those of the residual
    blocks.

    Args:
        graph: a captured graph.
    """
    image = flow(graph)
    starts = [node.name for node in graph.nodes if node.op == "placeholder" and node.name in image]
    ends = [node.name for node in graph.nodes if node.op == "output"]
    if not starts or not nx.has_path(image, starts[0], ends[0]):
        return Skeleton(frozenset(), ())
    chain = _must_pass(image, starts[0], ends[0])
    trunk: set[str] = set()
    for _ in range(4):
        positions = {name: position for position, name in enumerate(_between(image, chain[0], chain[-1]))}
        sizes = [positions[b] - positions[a] - 1 for a, b in pairwise(chain)]
        widest = max(range(len(sizes)), key=sizes.__getitem__)
        start, end = chain[widest], chain[widest + 1]
        body = _skip(image, start, end) if sizes[widest] > len(image) // 2 else None
        if body is None:
            break
        trunk |= set(chain)
        chain = _must_pass(image, start, body)
    stages = [name for name in chain[1:] if image.nodes[name]["call"] in ADD]
    if trunk and stages:
        trunk |= set(chain)
    if not stages:
        computed = {node.name for node in graph.nodes if (kind := kind_of(node)) is not None and not kind.reason}
        stages = [name for name in chain[1:-1] if name in computed]
    return Skeleton(frozenset(trunk), tuple(stages))


def residual_stages(graph: fx.Graph, limit: int = 32) -> tuple[str, ...]:
    """The nodes at which the residual stages of a network end, in order: the features of distillation.

    A network without residual stages gives the nodes of its chain that computed something.

    Args:
        graph: a captured graph.
        limit: largest number of nodes; they are evenly spaced.
    """
    stages = skeleton(graph).stages
    step = max(1, -(-len(stages) // limit))
    return stages[::-1][::step][::-1]
