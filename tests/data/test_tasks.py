"""Adding a task is adding a row: it is read from a recipe, calibrated, scored by its figures, stored and restored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxptq
from fxptq.data import tasks
from fxptq.data.degrade import Degradation
from fxptq.data.tasks import Clean, Damaged, Task, task_named
from fxptq.errors import InputError
from fxptq.evaluate.score import evaluate
from fxptq.evaluate.sets import samples
from fxptq.facts import Overrides
from fxptq.recipe import Recipe


def darkened(hr: Clean, amount: float, rng: np.random.Generator) -> Damaged:
    return hr.astype(np.float32) * np.float32(1 - amount)


DARK = Task("dark", darkened, ("psnr", "ssim_y"), level="amount", allows=lambda a: 0 < a < 1, expected="0 to 1")
RECIPE = """
name = "dark"
title = "A picture taken at night"
[degradation]
kind = "dark"
amount = 0.5
[presets.quick]
images = 2
passes = [{ name = "minmax" }]
"""


@pytest.fixture
def dark(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of a task that a row of the table adds, for as long as the test runs."""
    monkeypatch.setattr(tasks, "TASKS", (*tasks.TASKS, DARK))
    monkeypatch.setattr("fxptq.facts.TASKS", tasks.TASKS)
    return Recipe.parse(RECIPE, "dark.toml")


def test_a_row_makes_a_task_that_goes_all_the_way(dark: Recipe, tmp_path: Path) -> None:
    assert str(dark.task) == "dark amount 0.5"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    q = fxptq.quantize(network, torch.rand(1, 3, 16, 16), "W8A8", recipe=dark, preset="quick")
    assert "dark amount 0.5" in q.meta.calibration
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors", network)
    assert loaded.task.task == Degradation("dark", amount=0.5)
    benchmark = samples(loaded.task.task, count=2, size=32)
    score = evaluate(lambda x: 2 * x, benchmark)
    assert score.reported == ("psnr", "ssim_y")
    assert score.mean.psnr > 45  # half levels are all that doubling cannot bring back
    assert score.mean.psnr_b is None


def test_its_level_is_checked_and_can_be_said_on_the_command_line(dark: Recipe) -> None:
    with pytest.raises(InputError, match=r"'dark' cannot have amount 1\.5; dark takes 0 to 1, other kinds none"):
        Degradation("dark", amount=1.5)
    with pytest.raises(InputError, match=r"'noise' cannot have amount 0\.5"):
        Degradation("noise", sigma=3, amount=0.5)
    assert Overrides(degradation="dark:0.25").applied(dark).task == Degradation("dark", amount=0.25)
    with pytest.raises(InputError, match="dark:AMOUNT"):
        Overrides(degradation="dusk")


def test_a_task_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(InputError, match="degradation 'dark' is unknown; expected one of bicubic, noise, jpeg, none"):
        task_named("dark")
    with pytest.raises(
        InputError, match=r"dark\.toml: degradation\.kind: .*'bicubic', 'noise', 'jpeg', 'none' or 'pairs'"
    ):
        Recipe.parse(RECIPE, "dark.toml")


def test_an_unused_amount_stays_out_of_files() -> None:
    assert Recipe.load("swinir_denoise25").degradation.model_dump() == {"kind": "noise", "sigma": 25.0, "quality": 0}
