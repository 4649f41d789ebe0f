"""Answers by way of other orientations: they come back upright, stay the same, and count only where they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fxptq.passes.base import Context, run_passes
from fxptq.passes.distill import DistillationLoss
from fxptq.passes.teaching import Teaching, turns_agree
from fxptq.passes.turns import turn, turn_back, turn_of, turned

NewContext = Callable[..., Context]
SQUARED = DistillationLoss(weight=0.0, scale="paper", output="squared")
QUICK = {"steps": 4, "batch": 2, "patch": 16, "eval_every": 2, "holdout_crops": 4, "feature_weight": 0.0}


def crops(count: int, height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_orientations_differ_and_come_back() -> None:
    x = crops(1)
    found = [turn(x, number) for number in range(8)]
    assert len({tuple(each.flatten().tolist()) for each in found}) == 8
    assert torch.equal(found[0], x)
    for number, each in enumerate(found):
        assert torch.equal(turn_back(each, number), x)


@pytest.mark.parametrize(("height", "width", "numbers"), [(12, 12, range(1, 8)), (12, 8, range(1, 4))])
def test_crops_get_all_orientations_of_their_size_but_their_own(height: int, width: int, numbers: range) -> None:
    many = crops(200, height, width)
    found = [turn_of(crop) for crop in many]
    assert set(found) == set(numbers)
    assert max(found.count(number) for number in numbers) < 3 * 200 / len(numbers)
    assert found == [turn_of(crop) for crop in many]
    assert turned(many)[0].shape == many.shape


def test_the_answer_is_the_mean_of_the_own_and_that_of_the_turned_crop(new_context: NewContext) -> None:
    ctx, x = new_context(), crops(5)
    lesson = Teaching(ctx, SQUARED, turns=True).teach(x)
    assert torch.equal(lesson.inputs[0], x)
    for crop, picture in zip(x, lesson.picture, strict=True):
        number = turn_of(crop)
        expected = (ctx.teacher(crop[None]) + turn_back(ctx.teacher(turn(crop[None], number)), number))[0] / 2
        torch.testing.assert_close(picture, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(lesson.picture, Teaching(ctx, SQUARED).teach(x).picture, atol=1e-3)


class Symmetric(nn.Module):
    """A blur, to which all orientations are alike."""

    def with_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(3, 1, 3, 3)
        return nn.functional.conv2d(x, kernel, padding=1, groups=3), []


class Upright(Symmetric):
    """A blur with light from above."""

    def with_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().with_features(x)[0] + torch.linspace(0, 1, x.shape[-2])[:, None], []


@pytest.mark.parametrize(("teacher", "agree"), [(Symmetric(), True), (Upright(), False)], ids=["symmetric", "upright"])
def test_answers_of_a_network_of_upright_pictures_do_not_agree(
    new_context: NewContext, teacher: nn.Module, agree: bool
) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)

    class Near(nn.Module):
        """A student whose error is 0.01."""

        quantizers: ClassVar[dict[str, nn.Module]] = {}

        def with_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return teacher.with_features(x)[0] + 0.1, []

    ctx.teacher, ctx.student = teacher, Near()  # type: ignore[assignment]
    assert turns_agree(ctx, crops(6).split(2), 3.0) is agree
    assert turns_agree(ctx, [(crops(1),)], 3.0)  # a network of several inputs is not turned, so that nothing disagrees


def test_the_distance_that_is_allowed_decides(new_context: NewContext) -> None:
    reports = []
    for settings in (QUICK, *({**QUICK, "turns": True, "turns_apart": most} for most in (0.0, 1e9))):
        ctx = new_context()
        run_passes([("dobi", {})], ctx)
        reports.append(run_passes([("dqc", settings)], ctx)[-1])
    plain, refused, taken = reports
    assert refused.series == plain.series
    assert taken.series != plain.series
    assert ["turned crops" in " ".join(report.notes) for report in reports] == [False, True, False]


def test_features_are_those_of_the_own_answer(new_context: NewContext) -> None:
    ctx, x = new_context(), crops(3)
    loss = DistillationLoss(weight=1.0, scale="relative")
    plain, turns = (Teaching(ctx, loss, turns=turns).teach(x) for turns in (False, True))
    assert len(plain.features) == len(turns.features) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain.features, turns.features, strict=True))
    assert not torch.equal(plain.picture, turns.picture)
