"""Residual stages, and the graph as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from fxptq.graph import Bits, Plan, Program, as_graphml
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR


def test_swinir_ends_four_stages() -> None:
    sizes = {"img_size": 16, "embed_dim": 4, "depths": (2,) * 4, "num_heads": (2,) * 4, "window_size": 8}
    model = SwinIR(**sizes, upscale=2, upsampler="pixelshuffledirect").eval()  # type: ignore[arg-type]
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    x = torch.rand(1, 3, 16, 24)
    _, features = Program(model, x).with_features(x)
    seen.clear()
    model(x)
    assert len(features) == 4
    assert all(torch.equal(a, b) for a, b in zip(features, seen, strict=True))


def test_edsr_ends_a_stage_with_each_block() -> None:
    program = Program(EDSR(n_resblocks=16, n_feats=4, scale=2).eval(), torch.rand(1, 3, 8, 8))
    assert len(program.stage_ends) == 16


class Plain(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("layers", "most"), [(5, 5), (40, 32)])
def test_without_stages_the_layers_are_stage_ends(layers: int, most: int) -> None:
    stage_ends = Program(Plain(layers).eval(), torch.rand(1, 3, 8, 8)).stage_ends
    assert 1 < len(stage_ends) <= most


@pytest.mark.parametrize(
    "make", [lambda: Plain(3), lambda: EDSR(n_resblocks=2, n_feats=4)], ids=["without quantizers", "with"]
)
def test_graphml_is_read_back(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    program = Program(make().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(3, 4)))
    path = tmp_path / "network.graphml"
    path.write_bytes(as_graphml(program.variants[0].capture.graph, program.sites))
    read = nx.read_graphml(path)
    assert nx.is_directed_acyclic_graph(read)
    sites = {data["site"]: data for _, data in read.nodes(data=True) if "site" in data}
    assert list(sites) == [site.name for site in program.sites]
    for site in program.sites:
        assert (sites[site.name]["kind"], sites[site.name]["macs"]) == (site.kind, site.macs)
        assert sites[site.name]["bits_w"] == (site.bits[0] or 32)
    assert [path.name for path in tmp_path.iterdir()] == ["network.graphml"]
