"""The judge of changes: the error of held-out crops, whose answers the teacher gives once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
import torch

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context, run_passes
from fxptq.passes.crops import split
from fxptq.passes.judge import Judge, JudgedSettings, crops_in_turn
from fxptq.sizes import ANY_SIZE, Sizes

NewContext = Callable[..., Context]


def test_the_error_is_that_of_the_pictures(new_context: NewContext) -> None:
    ctx = replace(new_context(), images=[torch.rand(1, 3, 16, 16) for _ in range(6)])
    run_passes([("dobi", {})], ctx)
    _, held = split(ctx.images, 0.25, torch.Generator().manual_seed(ctx.seed))
    with torch.no_grad():
        batch = torch.cat([x for x in held if isinstance(x, torch.Tensor)])
        errors = (ctx.student(batch) - ctx.teacher(batch)).double().square()
    assert Judge(ctx, 0.25).error == pytest.approx(float(errors.mean()), rel=1e-9)


def test_the_teacher_answers_once_for_all_passes(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    with mock.patch.object(ctx.teacher, "forward", wraps=ctx.teacher.forward) as asked:
        first = Judge(ctx, 0.25)
        count = asked.call_count
        again = Judge(ctx, 0.25)
        assert asked.call_count == count > 0
        assert again.error == first.error
        Judge(ctx, 0.25, 8)  # crops of another side
        assert asked.call_count == 2 * count
        Judge(ctx, 0.25, 8, 5)  # another number of crops
        assert asked.call_count == 3 * count


def numbered(height: int, width: int, start: int) -> torch.Tensor:
    return (torch.arange(height * width).reshape(1, 1, height, width) + start).float()


def first_values(crops: list[Inputs]) -> list[int]:
    return [int(crop[0, 0, 0, 0]) for crop in crops if isinstance(crop, torch.Tensor)]


@pytest.mark.parametrize(("count", "of_each"), [(1, [1, 1, 1]), (3, [1, 1, 1]), (5, [2, 2, 1]), (8, [3, 3, 2])])
def test_every_input_gives_a_crop_before_any_gives_another(count: int, of_each: list[int]) -> None:
    items = [numbered(20, 30, 0), numbered(24, 16, 1000), numbered(40, 40, 2000)]
    crops = crops_in_turn(ANY_SIZE, items, 16, count, seed=1)
    assert {tuple(crop.shape) for crop in crops if isinstance(crop, torch.Tensor)} == {(1, 1, 16, 16)}
    values = first_values(crops)
    assert [sum(value // 1000 == i or (i == 2 and value > 2000) for value in values) for i in range(3)] == of_each
    assert len(set(values)) == len(values)
    assert first_values(crops_in_turn(ANY_SIZE, items, 16, count, seed=1)) == values
    assert [value // 1000 for value in values[:2]] == [0, 1]


def test_no_crop_is_there_twice() -> None:
    small, large = numbered(12, 16, 0), numbered(17, 16, 1000)
    crops = crops_in_turn(ANY_SIZE, [small, large], 16, 8, seed=0)
    sides = [crop.shape[-1] for crop in crops if isinstance(crop, torch.Tensor)]
    assert sides == [12, 16, 12, 16, 12, 12]  # the large one has two crops, and of the small one four are needed
    assert all(
        crop.shape[-2] == side for crop, side in zip(crops, sides, strict=True) if isinstance(crop, torch.Tensor)
    )
    assert len(set(first_values(crops))) == len(crops)


def test_inputs_that_are_used_whole_are_there_once() -> None:
    pairs = [(numbered(20, 30, 0), torch.ones(1)), (numbered(20, 30, 0), torch.zeros(1))]
    assert crops_in_turn(ANY_SIZE, pairs, 16, 8, seed=0) == pairs
    picture = numbered(20, 30, 0)
    assert crops_in_turn(Sizes(minimum=24), [picture], 16, 8, seed=0) == [picture]


@pytest.mark.parametrize("name", ["judge_patch", "judge_crops"])
def test_a_judge_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
        JudgedSettings(**{name: 0})
