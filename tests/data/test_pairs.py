"""Folders of pairs: found whole or refused by name, scored as they are, and calibrated on their inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fxptq
from fxptq.data.degrade import Degradation
from fxptq.data.pairs import is_paired, pairs_in
from fxptq.data.sources import calibration_images
from fxptq.errors import InputError
from fxptq.evaluate.metrics import psnr
from fxptq.evaluate.score import evaluate
from fxptq.evaluate.sets import open_set
from fxptq.io.folders import sample_digest, sample_files
from tests.tiny import run

PAIRS = Degradation("pairs")

NOISY = """
import torch
from torch import nn
from torch.nn import functional as F

class Smooth(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.tail = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)
        with torch.no_grad():
            self.tail.weight.mul_(0.01)
            self.tail.bias.zero_()
    def forward(self, x):
        return 0.4 * x + 0.6 * F.avg_pool2d(x, 3, 1, 1) + self.tail(torch.relu(self.head(x)))

def net(): return Smooth().eval()
"""


def write_pairs(folder: Path, names: tuple[str, ...] = ("a", "deep/b", "c"), side: int = 40, scale: int = 1) -> None:
    """Pictures, and the noisy pictures that a camera would make of them, in files of another format."""
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        clean = np.kron(rng.integers(0, 256, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        small = clean.reshape(side // scale, scale, side // scale, scale, 3).mean((1, 3))
        bad = np.clip(small + rng.normal(0, 40, small.shape), 0, 255).round().astype(np.uint8)
        for part, image, suffix in (("input", bad, ".png"), ("target", clean, ".bmp")):
            path = (folder / part / name).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def test_pairs_are_found_by_their_names(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    assert is_paired(tmp_path)
    assert [(p.name, p.input.name, p.target.name) for p in pairs_in(tmp_path)] == [
        ("a", "a.png", "a.bmp"),
        ("c", "c.png", "c.bmp"),
        ("deep/b", "b.png", "b.bmp"),
    ]


@pytest.mark.parametrize("part", ["input", "target"])
def test_a_picture_without_a_partner_is_named(part: str, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    removed = next((tmp_path / part / "deep").iterdir())
    removed.unlink()
    with pytest.raises(InputError, match=rf"deep/b\.\w+: has no partner; expected .*{part}/deep/b\.png"):
        pairs_in(tmp_path)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "input" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="are both named a; rename one"):
        pairs_in(tmp_path)


@pytest.mark.parametrize("task", [PAIRS, Degradation("noise", sigma=25), Degradation("none")], ids=str)
def test_real_inputs_are_scored_as_they_are(task: Degradation, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    benchmark = open_set("Real", tmp_path, task)
    for pair, files in zip(benchmark, pairs_in(tmp_path), strict=True):
        assert pair.name == files.name
        assert np.array_equal(pair.lr, np.asarray(Image.open(files.input)).astype(np.float32))
        assert np.array_equal(pair.hr, np.asarray(Image.open(files.target)))
    score = evaluate(lambda x: x, benchmark)
    expected = [psnr(pair.lr.astype(np.uint8), pair.hr, 0) for pair in benchmark]
    assert score.mean.psnr == pytest.approx(np.mean(expected))


def test_pairs_of_a_network_that_enlarges(tmp_path: Path) -> None:
    write_pairs(tmp_path, scale=2)
    (first, *_) = open_set("Real", tmp_path, Degradation("pairs", scale=2))
    assert (first.lr.shape, first.hr.shape) == ((20, 20, 3), (40, 40, 3))
    with pytest.raises(InputError, match=r"is 20x20; expected 40x40, the size of"):
        list(open_set("Real", tmp_path, PAIRS))


def test_a_folder_without_pairs_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Real: .* holds no pairs; expected .*input and .*target"):
        open_set("Real", tmp_path, PAIRS)


@pytest.mark.parametrize("task", [PAIRS, Degradation("noise", sigma=25)], ids=str)
def test_calibration_takes_the_inputs_as_they_are(task: Degradation, tmp_path: Path) -> None:
    write_pairs(tmp_path, side=32)
    inputs, described = calibration_images(tmp_path, task, count=6, size=32)
    files = [pair.input for pair in pairs_in(tmp_path)]
    digest = sample_digest(sample_files(files, tmp_path, 6, 0).files, tmp_path)
    sample = f"{len(files)} files, sample sha256:{digest}"
    assert described == f"6 crops of the inputs of the pairs in {tmp_path.name} ({sample}), 32x32, seed 0"
    stored = [np.asarray(Image.open(pair.input)) for pair in pairs_in(tmp_path)]
    turned = {np.rot90(x, turn)[:, ::flip].tobytes() for x in stored for turn in range(4) for flip in (1, -1)}
    for x in inputs:
        assert isinstance(x, torch.Tensor)
        levels = (x[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
        assert levels.tobytes() in turned


def test_a_network_for_real_noise_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise_net.py").write_text(NOISY)
    write_pairs(tmp_path / "data")
    network = ["--model", "noise_net:net"]
    ran = run(
        *["quantize", *network, "--recipe", "pairs", "--calib", "data", "--data", "Real=data", "--preset", "quick"],
        *["-o", "m.safetensors", "--json", "q.json"],
    )
    assert (ran.status, ran.err) == (0, "")
    assert "pairs" in ran.out.splitlines()[0]
    scores = json.loads(Path("q.json").read_text())["eval"]["Real"]
    before = np.mean([psnr(p.lr.astype(np.uint8), p.hr, 0) for p in open_set("Real", tmp_path / "data", PAIRS)])
    assert scores["fp"]["psnr"] > before + 0.3
    assert abs(scores["final"]["psnr"] - scores["fp"]["psnr"]) < 0.5
    assert run("evaluate", "m.safetensors", *network, "--data", "Real=data", "--json", "e.json").status == 0
    found = json.loads(Path("e.json").read_text())["Real"]
    assert set(found["images"]) == {"a", "c", "deep/b"}
    assert found["psnr"] == pytest.approx(scores["final"]["psnr"], abs=1e-6)
    assert str(fxptq.load("m.safetensors", model=__import__("noise_net").net()).task.task) == "pairs x1"
    assert run("quantize", *network, "--degradation", "pairs", "--data", "Real=q.json").status == 2
