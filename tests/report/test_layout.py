"""The drawing of a network: which things it shows, and where."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxptq.graph import Program
from fxptq.report.gather import drawn
from fxptq.report.layout import COLUMNS, Layout, arrange, block_of, condensed
from tests.tiny import edsr, inputs, swinir

SLOW_MACHINES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def flows(draw: st.DrawFn) -> tuple[nx.DiGraph, list[str]]:
    """A flow from an image to a result, in the order of execution, and the nodes of its sites."""
    count = draw(st.integers(2, 14))
    graph = nx.DiGraph()
    graph.add_node("n0", call="placeholder")
    for index in range(1, count):
        graph.add_node(f"n{index}", call=draw(st.sampled_from(["add", "relu", "conv2d"])))
        for source in draw(st.sets(st.integers(0, index - 1), min_size=1, max_size=2)):
            graph.add_edge(f"n{source}", f"n{index}")
    sites = [name for name in list(graph)[1:-1] if draw(st.booleans())]
    return graph, sites


@SLOW_MACHINES
@given(flows())
def test_a_condensed_flow_keeps_the_ways_between_sites(made: tuple[nx.DiGraph, list[str]]) -> None:
    graph, sites = made
    last = list(graph)[-1]
    kept = condensed(graph, sites)
    reaching = [site for site in sites if nx.has_path(graph, site, last)]
    assert set(reaching) <= set(kept)
    for a in reaching:
        for b in reaching:
            assert nx.has_path(kept, a, b) == nx.has_path(graph, a, b)
    assert nx.is_directed_acyclic_graph(kept)
    for name in kept:
        assert name in sites or name in ("n0", last) or kept.in_degree(name) > 1


@SLOW_MACHINES
@given(flows())
def test_no_two_boxes_lie_on_each_other_and_all_lie_inside(made: tuple[nx.DiGraph, list[str]]) -> None:
    graph, sites = made
    check(arrange(graph, [(name, f"body.{i}.conv") for i, name in enumerate(sites)]))


def check(layout: Layout) -> None:
    places = [(box.x, box.y) for box in layout.boxes]
    assert len(set(places)) == len(places)
    for x, y in places:
        assert 0 < x < layout.width
        assert 0 < y < layout.height
    for block in layout.blocks:
        assert block.x + block.width < layout.width


@pytest.mark.parametrize("make", [swinir, edsr], ids=["swinir", "edsr"])
def test_every_site_of_a_network_is_drawn_once(make: object) -> None:
    program = Program(make(), inputs(1))  # type: ignore[operator]
    layout = drawn(program)
    check(layout)
    shown = sorted(box.site for box in layout.boxes if box.site is not None)
    assert shown == list(range(len(program.sites)))
    assert [box.label for box in layout.boxes if box.label in ("image", "result")] == ["image", "result"]
    assert any(box.label == "+" for box in layout.boxes)


def test_a_program_whose_first_graph_has_gone_is_drawn_from_another() -> None:
    program = Program(edsr(), inputs(1), limit=1)
    other = Program(edsr(), inputs(1, 24))
    program._cache = other._cache
    assert [box.site for box in drawn(program).boxes if box.site is not None] == list(range(len(program.sites)))


def test_long_blocks_are_broken_into_rows() -> None:
    graph = nx.path_graph(3 * COLUMNS, create_using=nx.DiGraph)
    graph = nx.relabel_nodes(graph, {n: f"n{n}" for n in graph})
    layout = arrange(graph, [(name, f"body.0.{name}") for name in list(graph)[1:-1]])
    assert len({box.y for box in layout.boxes}) >= 3
    assert max(sum(other.y == box.y for other in layout.boxes) for box in layout.boxes) <= COLUMNS


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("layers.0.residual_group.blocks.1.attn.qkv", "layers.0.residual_group.blocks.1"),
        ("body.12.conv1", "body.12"),
        ("upsample.0", ""),
        ("conv_first", ""),
        ("conv1.weight", ""),
    ],
)
def test_the_block_of_a_site(path: str, block: str) -> None:
    assert block_of(path) == block
