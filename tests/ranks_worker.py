"""One of several processes that work on one network: `python ranks_worker.py FOLDER TASK`, with torchrun's variables.

The first process writes its results into FOLDER; each one writes its error, if it has one, to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fxptq
from fxptq import ranks, resume
from fxptq.errors import FxptqError
from fxptq.passes.training import Training
from fxptq.quant.observer import Histogram
from tests.tiny import edsr, inputs, settings

DQC = "steps = 3, batch = 5, patch = 8, holdout_crops = 4, eval_every = 2, lr = 0.1"
PASSES = {
    "minmax": '{ name = "minmax" }',
    "percentile": '{ name = "percentile", p = 99.0 }',
    "dobi": '{ name = "dobi" }',
    "dobi2d": '{ name = "dobi2d", k = 20 }',
    "gptq": '{ name = "minmax" }, { name = "gptq" }',
    "refit": '{ name = "minmax" }, { name = "refit" }',
    "dqc": f'{{ name = "minmax" }}, {{ name = "dqc", {DQC} }}',
    "dqc_repeated": f'{{ name = "minmax" }}, {{ name = "dqc", {DQC}, crops = 10 }}',
}


def pictures() -> Tensor:
    return inputs(5) * torch.linspace(0.2, 1, 5).view(5, 1, 1, 1)


def quantized(name: str) -> fxptq.QuantizedModel:
    return fxptq.quantize(edsr(), inputs(1), 4, pictures(), settings(PASSES[name]), scale=2, value_range=1.0)


def quantize(folder: Path) -> None:
    for name in PASSES:
        q = quantized(name)
        if ranks.current().first:
            q.save(folder / f"{name}.safetensors")


def sums(folder: Path) -> None:
    team = ranks.current()
    values = torch.arange(12.0).reshape(3, 4) + 100 * team.rank
    more, whole = torch.full((5,), float(team.rank)), torch.tensor([team.rank + 1])
    team.reduce([values.t(), more, whole])
    low, high = torch.tensor([team.rank, -team.rank]), torch.tensor([team.rank, -team.rank])
    team.reduce([low], "min")
    team.reduce([high], "max")
    mean = torch.tensor([float(team.rank)])
    team.average([mean], team.rank)
    found = {
        "values": values,
        "more": more,
        "whole": whole,
        "low": low,
        "high": high,
        "mean": mean,
        "totals": team.totals(1, 0.5),
        "share": team.exchange({str(i): (i, team.rank) for i in team.share(range(7))}),
        "parts": team.gather(team.part(torch.arange(2)).tolist()),
        "first": team.from_first(f"of {team.rank}"),
        "largest": team.largest(team.rank),
        "number": team.mean(team.rank, 1 + team.rank),
    }
    everywhere = team.gather({name: repr(value) for name, value in found.items()})
    assert all(other == everywhere[0] for other in everywhere)
    if team.first:
        torch.save(found, folder / "sums.pt")


class Squares(nn.Module):
    """Squares leave the range of float32 for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x).square())


def unfit(folder: Path) -> None:
    """One picture, which one process alone runs, leads to infinite values."""
    images = pictures()
    images[1] = 1e30
    fxptq.quantize(Squares().eval(), inputs(1), 4, images, settings(), scale=1, value_range=1.0)


def others(folder: Path) -> None:
    """The processes are given different pictures."""
    images = pictures() + 0.01 * ranks.current().rank
    fxptq.quantize(edsr(), inputs(1), 4, images, settings(), scale=2, value_range=1.0)


def killed(folder: Path) -> None:
    """The last process is killed in the middle of observing."""
    _hit(signal.SIGKILL)
    quantize(folder)


def stopped(folder: Path) -> None:
    """The last process stops in the middle of observing, and is not seen to be gone."""
    _hit(signal.SIGSTOP)
    quantize(folder)


def kept(folder: Path) -> None:
    """A run that keeps its state, after each step of the distillation too."""
    resume.INTERVAL_S = 0.0
    passes = settings(f'{{ name = "minmax" }}, {{ name = "dqc", {DQC}, rounding_lr = 0.1 }}')
    q = fxptq.quantize(edsr(), inputs(1), 4, pictures(), passes, scale=2, value_range=1.0, resume=folder / "state")
    if ranks.current().first:
        q.save(folder / "kept.safetensors")


def kept_and_killed(folder: Path) -> None:
    """The last process is killed in the third step of the distillation."""
    team = ranks.current()
    plain = Training.step

    def step(self: Training, number: int, done: float) -> float:
        value = plain(self, number, done)
        if team.rank == team.world - 1 and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    Training.step = step
    kept(folder)


def _hit(number: int) -> None:
    team = ranks.current()
    plain, calls = Histogram.update, 0

    def update(self: Histogram, x: Tensor) -> None:
        nonlocal calls
        calls += 1
        if team.rank == team.world - 1 and calls == 5:
            os.kill(os.getpid(), number)
        plain(self, x)

    Histogram.update = update


if __name__ == "__main__":
    status = 0
    try:
        with ranks.joined():
            globals()[sys.argv[2]](Path(sys.argv[1]))
    except FxptqError as error:
        if str(error):
            print(error, file=sys.stderr, flush=True)
        status = 1
    os._exit(status)
