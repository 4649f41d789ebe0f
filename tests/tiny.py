"""Networks of a few thousand weights, a recipe for one of them, and the command line called as a function."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import fxptq
from fxptq import cli
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR
from fxptq.recipe import Recipe

ARGS = {
    "upscale": 2,
    "in_chans": 3,
    "img_size": 16,
    "window_size": 8,
    "img_range": 1.0,
    "depths": [2, 2],
    "embed_dim": 12,
    "num_heads": [2, 2],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
    "resi_connection": "1conv",
}

RECIPE = """\
name = "tiny"
title = "Tiny SwinIR <x2>"
scale = 2
[model]
factory = "fxptq.models.swinir:SwinIR"
[model.args]
upscale = 2
in_chans = 3
img_size = 16
window_size = 8
img_range = 1.0
depths = [2, 2]
embed_dim = 12
num_heads = [2, 2]
mlp_ratio = 2
upsampler = "pixelshuffledirect"
resi_connection = "1conv"
[input]
multiple = 8
size = [16, 16]
[degradation]
kind = "bicubic"
[presets.quick]
images = 2
passes = [{ name = "minmax" }]
[presets.standard]
images = 2
passes = [{ name = "dobi" }, { name = "dqc", steps = 2, batch = 1, patch = 16, holdout_crops = 1, eval_every = 1 }]
"""

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.tail = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 8), (8, 3)))
    def forward(self, x):
        return x + self.tail(torch.relu(self.body(self.head(x))))

class Broken(Net):
    def forward(self, x):
        return super().forward(x) / 0.0

def needy(width): ...
def number(): return 3
def wrong(): raise OSError("no such\\nfile")
"""
"""The text of a user's module: networks, and factories that do not give one."""


def swinir(seed: int = 0, **changes: object) -> nn.Module:
    """SwinIR of two stages of two blocks."""
    torch.manual_seed(seed)
    return SwinIR(**{**ARGS, **changes}).eval()


def edsr(seed: int = 0) -> nn.Module:
    """EDSR of two blocks of eight channels."""
    torch.manual_seed(seed)
    return EDSR(n_resblocks=2, n_feats=8, scale=2).eval()


class Medley(nn.Module):
    """What bundled networks lack: a shared weight, a grouped and a transposed convolution, odd buffers and channels."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2)
        self.tail = nn.Conv2d(4, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            self.grouped.weight[2] = 0.3  # channels without range, at a value and at zero
            self.grouped.weight[3] = 0.0
            self.up.weight[:, 1] = -0.7
            self.norm.running_var.fill_(3e5)  # beyond half precision
            self.norm.weight.fill_(500.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.head(x - self.mean))
        y = y + self.grouped(F.relu(y))
        y = self.second(F.gelu(self.first(y.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.tail(self.up(y))


def inputs(count: int = 2, side: int = 16, seed: int = 0) -> Tensor:
    """Images of noise, [count, 3, side, side], 0..1."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def settings(passes: str = '{ name = "minmax" }', **quantize: object) -> Recipe:
    """A recipe without a network: what is quantized and by which passes."""
    table = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in quantize.items())
    return Recipe.parse(
        f'name = "mine"\ntitle = "Mine"\n[quantize]\n{table}\n[presets.standard]\npasses = [{passes}]', "mine"
    )


@cache
def checkpoint() -> bytes:
    """A checkpoint of the tiny SwinIR at W4A4, made under the recipe of `write_recipe`."""
    q = fxptq.quantize(swinir(), inputs(1), fxptq.Bits(4, 4), inputs(), Recipe.parse(RECIPE, "tiny"), preset="quick")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        q.save(path)
        return path.read_bytes()


def picture(path: Path, side: int = 64, mode: str = "RGB") -> Path:
    """A picture of noise, L, RGB, RGBA or I;16 (grey of 16 bits); returns its path."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, (side, side), dtype=np.uint16)).save(path)
    else:
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        Image.fromarray(rng.integers(0, 256, (side, side, *channels), dtype=np.uint8), mode).save(path)
    return path


def write_recipe(folder: Path, text: str = RECIPE) -> tuple[str, str]:
    """Writes tiny.toml and tiny_weights.safetensors; returns their paths."""
    recipe, weights = folder / "tiny.toml", folder / "tiny_weights.safetensors"
    recipe.write_text(text)
    save_file({name: x.contiguous() for name, x in swinir().state_dict().items()}, weights)
    return str(recipe), str(weights)


def write_checkpoint(folder: Path) -> str:
    """Writes tiny.safetensors, and mod.py, whose `tiny` builds its network; returns the path of the former."""
    path = folder / "tiny.safetensors"
    path.write_bytes(checkpoint())
    (folder / "mod.py").write_text(f"from fxptq.models.swinir import SwinIR\ndef tiny(): return SwinIR(**{ARGS})\n")
    return str(path)


@dataclass(frozen=True)
class Ran:
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("fxptq: ")
        return lines[0].removeprefix("fxptq: ")


def run(*args: object) -> Ran:
    """`fxptq ARGS` in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv = ["fxptq", *map(str, args)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a process of its own: one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **(changes or {})}


def spawn(args: Sequence[object], folder: Path) -> Ran:
    """`python -m fxptq ARGS` in a process of its own."""
    command = [sys.executable, "-m", "fxptq", *map(str, args)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)  # noqa: S603  # our own
    return Ran(done.returncode, done.stdout, done.stderr)
