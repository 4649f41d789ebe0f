"""`--weights FILE` without a recipe: what spandrel recognises goes all the way, and what it does not is one line.

Tests marked zoo need the extra `zoo`; the networks are spandrel's own, tiny and untrained.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import fxptq
from fxptq.commands import community
from fxptq.commands.source import example_of
from fxptq.sizes import Sizes
from tests.tiny import edsr, picture, run

NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "compact": ("spandrel.architectures.Compact.__arch.SRVGG:SRVGGNetCompact", {"num_feat": 8, "num_conv": 2}, 3, 4),
    "dncnn": (
        "spandrel.architectures.DnCNN.__arch.network_dncnn:DnCNN", {"in_nc": 1, "out_nc": 1, "nc": 8, "nb": 5}, 1, 1,
    ),
    "fbcnn": ("spandrel.architectures.FBCNN.__arch.FBCNN:FBCNN", {"nc": [8, 8, 16, 512], "nb": 4}, 3, 1),
    "scunet": ("spandrel.architectures.SCUNet.__arch.SCUNet:SCUNet", {"config": [1] * 7, "dim": 64}, 3, 1),
    "restormer": (
        "spandrel_extra_arches.architectures.Restormer.__arch.restormer_arch:Restormer",
        {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 1, 1]},
        3,
        1,
    ),
}  # fmt: skip
"""Architecture, options, channels of the picture, scale."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(name: str) -> nn.Module:
    source, options, _, _ = NETWORKS[name]
    module, kind = source.split(":")
    torch.manual_seed(0)
    made: nn.Module = getattr(importlib.import_module(module), kind)(**options)
    return made.eval()


@pytest.mark.parametrize(
    ("asked", "sizes", "side"),
    [
        ((None, 1, False), Sizes(), 64),
        ((0, 8, False), Sizes(8), 64),
        ((70, 16, True), Sizes(16, 70, square=True), 80),
        ((128, 128, True), Sizes(128, 128, square=True), 128),
    ],
    ids=str,
)
def test_sizes_that_spandrel_knows_reach_the_recipe(asked: tuple[Any, int, bool], sizes: Sizes, side: int) -> None:
    found = SimpleNamespace(
        size_requirements=SimpleNamespace(minimum=asked[0], multiple_of=asked[1], square=asked[2]),
        architecture=SimpleNamespace(id="Some", name="Some"),
        scale=2,
        input_channels=3,
    )
    recipe = community._recipe(found)
    assert recipe.input.sizes == sizes
    assert example_of(recipe).shape == (1, 3, side, side)
    assert str(recipe.task) == "bicubic x2"


@pytest.mark.zoo
@pytest.mark.parametrize("name", NETWORKS)
def test_recognised_file_goes_all_the_way(name: str, folder: Path) -> None:
    pytest.importorskip("spandrel_extra_arches")
    channels, scale = NETWORKS[name][2:]
    torch.save({"params_ema": network(name).state_dict()}, "community.pth")
    picture(folder / "in.png", 37, "L" if channels == 1 else "RGB")
    options = ["--preset", "quick", "--out", "m.safetensors", "--json", "r.json"]
    ran = run("quantize", "--weights", "community.pth", *options)
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("r.json").read_text())
    assert result["recipe"] == name
    for integer in ([], ["--integer"]):
        ran = run("upscale", "m.safetensors", "in.png", "out.png", "--model", "community.pth", *integer)
        assert (ran.status, ran.err) == (0, "")
        with Image.open("out.png") as image:
            assert image.size == (37 * scale, 37 * scale)
            assert image.mode == ("L" if channels == 1 else "RGB")
    shown = run("evaluate", "m.safetensors", "--model", "community.pth", "--json", "e.json")
    assert (shown.status, shown.err) == (0, "")
    scored = json.loads(Path("e.json").read_text())["samples"]
    final = result["eval"]["samples"]["final"]
    assert {key: scored[key] for key in final} == pytest.approx(final, abs=1e-6)


@pytest.mark.zoo
def test_checkpoint_loads_around_the_architecture(folder: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save(network("compact").state_dict(), "community.pth")
    assert run("quantize", "--weights", "community.pth", "--preset", "quick", "--out", "m.safetensors").status == 0
    q = fxptq.load("m.safetensors", network("compact"))
    x = torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        assert q(x).shape == (1, 3, 84, 136)
    assert (q.task.name, q.task.scale, str(q.task.task)) == ("compact", 4, "bicubic x4")


@pytest.mark.zoo
def test_recipe_of_ones_own_for_a_recognised_network(folder: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save(network("fbcnn").state_dict(), "community.pth")
    Path("mine.toml").write_text('name = "mine"\ntitle = "Mine"\n[degradation]\nkind = "jpeg"\nquality = 20\n')
    options = ["--recipe", "mine.toml", "--preset", "quick", "--out", "m.safetensors"]
    ran = run("quantize", "--model", "community.pth", *options)
    assert (ran.status, ran.err) == (0, "")
    assert "PSNR-B (dB)" in ran.out


@pytest.mark.zoo
def test_file_of_no_known_architecture(folder: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save({"weight": torch.zeros(3)}, "community.pth")
    for command in (["quantize", "--weights", "community.pth"], ["inspect", "--model", "community.pth"]):
        ran = run(*command)
        assert ran.status == 2
        assert ran.line.startswith(
            "community.pth: spandrel does not recognise its architecture (UnsupportedModelError)"
        )


@pytest.mark.zoo
def test_network_that_takes_a_mask_too(folder: Path) -> None:
    pytest.importorskip("spandrel")
    lama = importlib.import_module("spandrel.architectures.LaMa.__arch.LaMa").LaMa()
    torch.save(lama.state_dict(), "community.pth")
    ran = run("quantize", "--weights", "community.pth")
    assert ran.status == 2
    assert "LaMa takes more than a picture; quantize it from Python" in ran.line


@pytest.mark.parametrize(
    "command",
    [["quantize", "--weights", "w.pth"], ["quantize", "--model", "w.pth"], ["inspect", "--model", "w.pth"]],
    ids=" ".join,
)
def test_without_the_extra_the_error_says_how_to_get_it(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    torch.save(edsr().state_dict(), "w.pth")
    ran = run(*command)
    assert (ran.status, ran.out) == (2, "")
    assert ran.line == (
        "w.pth: without --recipe or --model its architecture must be recognised, which needs spandrel: "
        "pip install 'fxptq[zoo]'"
    )
    assert [path.name for path in folder.iterdir()] == ["w.pth"]


def test_torchvision_of_another_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lib" / "spandrel").mkdir(parents=True)
    (folder / "lib" / "spandrel" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.syspath_prepend(str(folder / "lib"))
    torch.save(edsr().state_dict(), "w.pth")
    ran = run("quantize", "--weights", "w.pth")
    assert ran.status == 2
    assert "spandrel cannot be imported (operator nms does not exist); install torch and torchvision of the" in ran.line


def test_missing_file(folder: Path) -> None:
    assert run("inspect", "--model", "no.pth").line == "no weights file at no.pth"
