"""The work of a run of the student, and trainings that take as much work on small networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxptq.graph import Bits, Plan, Program
from fxptq.passes.base import Context, run_passes
from fxptq.passes.work import work_of

DQC = {"steps": 2, "batch": 1, "patch": 16, "crops": 4, "holdout_crops": 2, "eval_every": 1}


def context(channels: int) -> Context:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 3, 1)).eval()
    images = [torch.rand(1, 3, 24, 24) for _ in range(4)]
    student = Program(model, images[0], Plan(Bits(4, 4), edges=None))
    ctx = Context(student, Program(model, images[0], twin=student), images)
    run_passes([("observe", {}), ("dobi2d", {"k": 20})], ctx)
    return ctx


def test_work_counts_products_and_values_of_a_batch() -> None:
    ctx = context(8)
    crop = torch.rand(1, 3, 16, 16)
    products = 16 * 16 * (8 * 3 * 9 + 3 * 8)
    work = work_of(ctx, crop)
    values = (work - products) / 30
    assert values == int(values)
    assert 16 * 16 * (2 * 3 + 2 * 8) < values < 40 * 16 * 16 * 16  # inputs become values on a grid, layers make outputs
    assert work_of(ctx, crop) == work
    assert work_of(ctx, crop.repeat(2, 1, 1, 1)) > 1.8 * work


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param(0.0, 2, id="none"),
        pytest.param(0.5, 2, id="less than the steps take"),
        pytest.param(3.0, 6, id="three times"),
        pytest.param(1e6, 32, id="more than helps"),
    ],
)
def test_a_training_takes_the_steps_that_the_work_allows(times: float, expected: int) -> None:
    ctx = context(8)
    work = times * 2 * work_of(ctx, torch.rand(1, 3, 16, 16))
    report = run_passes([("dqc", {**DQC, "work": work})], ctx)[-1]
    assert len(report.series["loss"]) == expected
    assert len(report.series["held_out_loss"]) == 3  # the start and two more, however long the training is


def test_a_larger_network_gets_fewer_steps() -> None:
    small, large = context(8), context(64)
    work = 8 * work_of(small, torch.rand(1, 3, 16, 16))
    steps = [len(run_passes([("dqc", {**DQC, "work": work})], ctx)[-1].series["loss"]) for ctx in (small, large)]
    assert steps[0] == 8
    assert 2 <= steps[1] < 4
