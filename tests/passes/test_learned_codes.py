"""Codes of weights that learn: they start as they are and where the float weight lies, and gradients reach them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxptq.passes.base import Context, run_passes
from fxptq.passes.offsets import learned_offsets
from fxptq.passes.pinned import pinned_codes
from fxptq.quant.quantizer import Quantizer

KEY = "conv.weight"
NewContext = Callable[..., Context]


def rounded(ctx: Context, apart: int = 0) -> tuple[Quantizer, Tensor, Tensor]:
    """The quantizer, and the codes of the weight, which are so many codes from the nearest; and these."""
    run_passes([("dobi", {})], ctx)
    quantizer, weight = ctx.student.quantizers[KEY], ctx.student.weight_of(KEY)
    assert weight is not None
    with torch.no_grad():
        nearest = quantizer.encode(weight)
        codes = (nearest.int() + apart).clamp(0, 2**quantizer.bits - 1).to(torch.uint8)
        ctx.student.set_weight(KEY, quantizer.decode(codes))
    return quantizer, codes, nearest


def offsets_of(ctx: Context) -> dict[str, Tensor]:
    weight = ctx.student.weight_of(KEY)
    assert weight is not None
    return {KEY: weight}


@pytest.mark.parametrize("apart", [0, 1, -1])
def test_no_offset_changes_nothing(new_context: NewContext, apart: int) -> None:
    ctx = new_context()
    quantizer, codes, _ = rounded(ctx, apart)
    before = offsets_of(ctx)[KEY].clone()
    with learned_offsets(ctx.student, ctx.teacher, offsets_of(ctx)):
        assert torch.equal(quantizer(before), before)
    after = ctx.student.weight_of(KEY)
    assert after is not None
    assert torch.equal(after, before)
    assert torch.equal(quantizer.encode(after), codes)


@pytest.mark.parametrize("offset", [1.0, -3.0, 99.0])
def test_offsets_are_codes_and_end_where_the_grid_does(new_context: NewContext, offset: float) -> None:
    ctx = new_context()
    quantizer, codes, _ = rounded(ctx)
    with learned_offsets(ctx.student, ctx.teacher, offsets_of(ctx)) as offsets, torch.no_grad():
        offsets[KEY].fill_(offset)
    after = ctx.student.weight_of(KEY)
    assert after is not None
    expected = (codes.int() + int(offset)).clamp(0, 2**quantizer.bits - 1)
    assert torch.equal(quantizer.encode(after).int(), expected)


def test_codes_away_from_the_nearest_are_the_first_to_change(new_context: NewContext) -> None:
    ctx = new_context()
    quantizer, codes, nearest = rounded(ctx, apart=1)
    moved = codes != nearest
    assert int(moved.sum()) > 0
    with learned_offsets(ctx.student, ctx.teacher, offsets_of(ctx)) as offsets, torch.no_grad():
        offsets[KEY].fill_(-0.21)  # from 0.3 below the middle of the cell over its border
    after = ctx.student.weight_of(KEY)
    assert after is not None
    changed = quantizer.encode(after) != codes
    assert torch.equal(quantizer.encode(after)[moved], nearest[moved])
    assert bool(changed[moved].all())


@pytest.mark.parametrize("offset", [0.19, -0.19])
def test_a_short_way_changes_no_code(new_context: NewContext, offset: float) -> None:
    ctx = new_context()
    quantizer, codes, _ = rounded(ctx, apart=1)
    with learned_offsets(ctx.student, ctx.teacher, offsets_of(ctx)) as offsets, torch.no_grad():
        offsets[KEY].fill_(offset)
    after = ctx.student.weight_of(KEY)
    assert after is not None
    assert torch.equal(quantizer.encode(after), codes)


def test_gradients_reach_the_grid_through_the_codes_and_the_offsets_through_the_rounding(
    new_context: NewContext,
) -> None:
    ctx = new_context()
    quantizer, codes, _ = rounded(ctx)
    x, out = ctx.images[0], torch.Generator().manual_seed(3)
    direction = torch.randn(ctx.teacher(x).shape, generator=out)

    def gradient_of_bounds() -> list[Tensor]:
        parameters = [each.parameter for each in quantizer.trainables()]
        found = torch.autograd.grad((ctx.student(x) * direction).sum(), parameters, retain_graph=True)
        return [each.clone() for each in found]

    with pinned_codes(ctx.student, offsets_of(ctx)):
        expected = gradient_of_bounds()
    with learned_offsets(ctx.student, ctx.teacher, offsets_of(ctx)) as offsets:
        for found, wanted in zip(gradient_of_bounds(), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        values = quantizer(offsets_of(ctx)[KEY])
        towards = torch.randn(values.shape, generator=out)
        (values * towards).sum().backward()
        with torch.no_grad():
            step = quantizer.decode(torch.ones_like(codes)) - quantizer.decode(torch.zeros_like(codes))
        torch.testing.assert_close(offsets[KEY].grad, towards * step)


def test_a_range_of_no_width_keeps_its_weight(new_context: NewContext) -> None:
    ctx = new_context()
    weight = ctx.student.weight_of(KEY)
    assert weight is not None
    ctx.student.set_weight(KEY, torch.full_like(weight, 0.25))
    run_passes([("dobi", {})], ctx)
    with learned_offsets(ctx.student, ctx.teacher, offsets_of(ctx)) as offsets, torch.no_grad():
        offsets[KEY].fill_(2.0)
    after = ctx.student.weight_of(KEY)
    assert after is not None
    assert torch.equal(after, ctx.student.quantizers[KEY].quantize(torch.full_like(weight, 0.25)))
