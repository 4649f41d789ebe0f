"""Places for the drawing of a network: its sites and the points where values meet, in rows like words of a text.

The blocks of a network are the words: a block that does not fit into the rest of a row begins a new one. Within a row
time runs to the right. Positions are in pixels, from the upper left corner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import networkx as nx

COLUMNS = 14  # boxes in a row
WIDTH, HEIGHT = 64, 30  # of a box
PITCH, LANE = 78, 38  # distance of neighbours in a row, and of boxes side by side
MARGIN, GAP = 46, 46  # left of the rows; between them
CHARACTER = 5.6  # width of a character below a frame

SIGNS = {
    "add": "+",
    "add_": "+",
    "iadd": "+",
    "mul": "\N{MULTIPLICATION SIGN}",
    "mul_": "\N{MULTIPLICATION SIGN}",
    "imul": "\N{MULTIPLICATION SIGN}",
    "sub": "-",
    "cat": "cat",
}
"""How a meeting of values is marked."""


@dataclass(frozen=True)
class Box:
    """A thing in the drawing, with the place of its centre.

    Attributes:
        x: from the left.
        y: from the top.
        label: what is written in it.
        site: the number of its site in the order of execution; None for other things.
    """

    x: float
    y: float
    label: str
    site: int | None = None


@dataclass(frozen=True)
class Block:
    """The frame around the boxes of a block of the network."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Layout:
    """A drawing.

    Attributes:
        width: of the whole.
        height: of the whole.
        boxes: sites, meetings, input and output.
        blocks: frames.
        lines: the way of the values, as the data of SVG paths.
    """

    width: float
    height: float
    boxes: tuple[Box, ...] = ()
    blocks: tuple[Block, ...] = ()
    lines: tuple[str, ...] = ()


def condensed(flow: nx.DiGraph, sites: Iterable[str]) -> nx.DiGraph:
    """A flow with its sites, its ends, and the nodes where different values meet; edges stand for all between them.

    Args:
        flow: as of `fxptq.graph.topology.flow`, its nodes in the order of execution.
        sites: names of the nodes of sites.
    """
    chosen = set(sites)
    found = nx.DiGraph()
    reaching = _reaching(flow)
    origins: dict[str, frozenset[str]] = {}
    for name, data in flow.nodes(data=True):
        if name not in reaching:
            continue
        sources = [origins[source] for source in flow.predecessors(name)]
        union = frozenset().union(*sources)
        meets = len(set(sources)) > 1 and len(union) > 1
        if name in chosen or meets or not sources or not reaching & set(flow.successors(name)):
            found.add_node(name, **data)
            found.add_edges_from((source, name) for source in sorted(union))
            origins[name] = frozenset({name})
        else:
            origins[name] = union
    return found


def _reaching(flow: nx.DiGraph) -> set[str]:
    """The nodes whose values reach the result, which is the last node; others compute sizes."""
    names = list(flow)
    return {*nx.ancestors(flow, names[-1]), names[-1]} if names else set()


def arrange(flow: nx.DiGraph, sites: Sequence[tuple[str, str]]) -> Layout:
    """Places for a network.

    Args:
        flow: the flow of the image through it.
        sites: node and name of each site, in the order of execution; a site that the flow lacks has an empty node.
    """
    graph = condensed(flow, [node for node, _ in sites])
    numbers = {node: number for number, (node, _) in enumerate(sites)}
    names = dict(sites)
    ranks = _ranks(graph)
    rows = _rows(ranks, names)
    boxes: dict[str, Box] = {}
    row_of: dict[str, int] = {}
    frames: list[Block] = []
    tops: list[float] = []
    y = float(GAP)
    for number, row in enumerate(rows):
        tops.append(y)
        deepest, column = max(len(rank) for _, group in row for rank in group), 0
        for label, group in row:
            width = len(group) * PITCH - 6
            frames.append(Block(MARGIN + column * PITCH, y - 8, width, deepest * LANE + 8, _fitting(label, width)))
            for rank in group:
                for lane, name in enumerate(rank):
                    x = MARGIN + column * PITCH + (PITCH - 6) / 2
                    boxes[name] = Box(x, y + lane * LANE + HEIGHT / 2, _label(graph, name, names), numbers.get(name))
                    row_of[name] = number
                column += 1
        y += deepest * LANE + GAP
    lines = tuple(_line(boxes, row_of, tops, ranks, edge, index) for index, edge in enumerate(graph.edges))
    widest = max((sum(len(group) for _, group in row) for row in rows), default=1)
    return Layout(2 * MARGIN + widest * PITCH, y, tuple(boxes.values()), tuple(frames), lines)


def _ranks(graph: nx.DiGraph) -> dict[str, int]:
    """The length of the longest way to each node."""
    ranks: dict[str, int] = {}
    for name in graph:
        ranks[name] = max((ranks[source] + 1 for source in graph.predecessors(name)), default=0)
    return ranks


def _rows(ranks: dict[str, int], names: dict[str, str]) -> list[list[tuple[str, list[list[str]]]]]:
    """Rows of blocks; a block is its label and its ranks, a rank the nodes that stand one above the other."""
    by_rank: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        by_rank.setdefault(rank, []).append(name)
    labelled: list[tuple[str, list[str]]] = []
    for rank in sorted(by_rank):
        nodes = by_rank[rank]
        path = next((names[node] for node in nodes if node in names), None)
        # Values meet in the block of the sites before them, whatever module adds them.
        label = block_of(path) if path is not None else labelled[-1][0] if labelled else ""
        labelled.append((label, nodes))
    rows: list[list[tuple[str, list[list[str]]]]] = [[]]
    used = 0
    for label, group in groupby(labelled, key=lambda item: item[0]):
        block = [nodes for _, nodes in group]
        for start in range(0, len(block), COLUMNS):
            part = block[start : start + COLUMNS]
            if used + len(part) > COLUMNS:
                rows.append([])
                used = 0
            rows[-1].append((label, part))
            used += len(part)
    return rows


def block_of(path: str) -> str:
    """The block that a site belongs to: its path up to the last number, `layers.0` for `layers.0.attn.qkv`."""
    found = re.match(r"(.*\b\d+)\.", path)
    return found[1] if found else ""


def _fitting(label: str, width: float) -> str:
    """The end of a label that is too long for its frame."""
    most = int(width / CHARACTER)
    return label if len(label) <= most else f"…{label[-most + 1 :]}"


def _label(graph: nx.DiGraph, name: str, names: dict[str, str]) -> str:
    if name in names:
        parts = names[name].split(".")
        last = parts[-1] if not parts[-1].isdigit() or len(parts) == 1 else ".".join(parts[-2:])
        return last if len(last) <= 9 else f"{last[:8]}…"
    if graph.in_degree(name) == 0:
        return "image"
    if graph.out_degree(name) == 0:
        return "result"
    return SIGNS.get(str(graph.nodes[name].get("call", "")), "•")


def _line(
    boxes: dict[str, Box],
    row_of: dict[str, int],
    tops: list[float],
    ranks: dict[str, int],
    edge: tuple[str, str],
    index: int,
) -> str:
    source, target = boxes[edge[0]], boxes[edge[1]]
    first, last = row_of[edge[0]], row_of[edge[1]]
    shift = 4 * (index % 4)
    start, end = _reach(source), _reach(target)
    if first == last:
        if ranks[edge[1]] - ranks[edge[0]] == 1:
            return f"M{source.x + start[0]:g} {source.y:g}L{target.x - end[0]:g} {target.y:g}"
        top = tops[first] - 14 - shift
        return (
            f"M{source.x:g} {source.y - start[1]:g}C{source.x:g} {top:g} {target.x:g} {top:g} "
            f"{target.x:g} {target.y - end[1]:g}"
        )
    below, above = tops[first + 1] - 14 - shift, tops[last] - 14 - shift
    down = f"M{source.x:g} {source.y + start[1]:g}V{below:g}"
    across = "" if last == first + 1 else f"H{8 + 5 * (index % 7):g}V{above:g}"
    return f"{down}{across}H{target.x:g}V{target.y - end[1]:g}"


def _reach(box: Box) -> tuple[float, float]:
    """Half the width and height of what is drawn for a box."""
    return (WIDTH / 2, HEIGHT / 2) if box.site is not None or len(box.label) > 3 else (10, 10)
