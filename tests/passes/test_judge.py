"""The judge of changes: the error of held-out crops, whose answers the teacher gives once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
import torch

from fxptq.errors import InputError
from fxptq.passes.base import Context, run_passes
from fxptq.passes.crops import split
from fxptq.passes.judge import Judge, JudgedSettings

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


@pytest.mark.parametrize("name", ["judge_patch", "judge_crops"])
def test_a_judge_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
        JudgedSettings(**{name: 0})
