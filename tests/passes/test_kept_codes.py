"""Distillation behind `refit`: codes of weights stay, their grids, biases and the scales of norms learn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.passes.base import Context, build_pass, run_passes
from fxptq.passes.crops import Batches
from fxptq.passes.pinned import pinned_codes
from fxptq.passes.vectors import learned_vectors
from fxptq.quant.schemes.affine import Affine
from tests.passes.test_transforms import Uneven, context, error, images

TRAINING = {"steps": 30, "batch": 2, "patch": 16, "lr": 0.01, "feature_weight": 0.0, "eval_every": 10}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def refitted() -> Context:
    ctx = context(Uneven("linear").eval(), images(), bits=2)
    run_passes([("channels", {"stages": 1}), ("refit", {})], ctx)
    return ctx


def codes(ctx: Context) -> dict[str, Tensor]:
    weights = {key: ctx.student.weight_of(key) for key in ctx.student.quantizers}
    return {key: ctx.student.quantizers[key].encode(w) for key, w in weights.items() if w is not None}


def test_codes_stay_and_grids_and_vectors_learn() -> None:
    ctx = refitted()
    before, start = codes(ctx), error(ctx)
    steps = {key: quantizer.upper - quantizer.lower for key, quantizer in ctx.student.quantizers.items()}
    vectors = {name: vector.clone() for name, vector in ctx.student.vectors().items()}
    longer = {"steps": 60, "batch": 4, "eval_every": 20}  # behind good maps 30 small steps change next to nothing
    run_passes([("dqc", {**TRAINING, **longer, "keep_codes": True, "vector_lr": 0.001})], ctx)
    assert error(ctx) < 0.98 * start
    for key, found in codes(ctx).items():
        assert torch.equal(found, before[key])
        weight = ctx.student.weight_of(key)
        assert weight is not None
        assert torch.equal(ctx.student.quantizers[key](weight), weight)  # the weight lies on its new grid
        assert not torch.equal(ctx.student.quantizers[key].upper - ctx.student.quantizers[key].lower, steps[key])
    moved = {name for name, vector in ctx.student.vectors().items() if not torch.equal(vector, vectors[name])}
    assert {"model.layer.bias", "model.spread", "model.move"} <= moved
    assert not any(vector.requires_grad for vector in ctx.student.vectors().values())


def test_vectors_stay_when_they_have_no_rate() -> None:
    ctx = refitted()
    vectors = {name: vector.clone() for name, vector in ctx.student.vectors().items()}
    run_passes([("dqc", {**TRAINING, "steps": 3, "keep_codes": True})], ctx)
    assert all(torch.equal(vector, vectors[name]) for name, vector in ctx.student.vectors().items())


def test_gradients_reach_the_grid_through_fixed_codes() -> None:
    ctx = refitted()
    key = "layer.weight"
    weight, quantizer = ctx.student.weight_of(key), ctx.student.quantizers[key]
    assert weight is not None
    assert isinstance(quantizer, Affine)
    with pinned_codes(ctx.student, {key: weight}):
        values = quantizer(weight)
        (slope,) = torch.autograd.grad(values.sum(), quantizer.shift)
    # A lower bound that moves by one width moves each value of its row by width * factor.
    expected = quantizer.width0 * quantizer.factor.sum()
    torch.testing.assert_close(slope, expected)


def test_values_without_a_code_stay() -> None:
    ctx = refitted()
    key = "layer.weight"
    weight, quantizer = ctx.student.weight_of(key), ctx.student.quantizers[key]
    assert weight is not None
    lower, upper = quantizer.lower.clone(), quantizer.upper.clone()
    upper[3] = lower[3]  # a range of zero width lets its values through
    quantizer.set_bounds(lower, upper)
    loose = weight.clone()
    loose[3] += torch.linspace(0, 1, loose.shape[1])
    ctx.student.set_weight(key, loose)
    with pinned_codes(ctx.student, {key: loose}):
        torch.testing.assert_close(quantizer(loose)[3], loose[3])


def test_a_vector_of_zeros_has_no_unit_and_others_a_power_of_two() -> None:
    zeros, ones = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor([3.0, -3.0]))
    with learned_vectors({"zeros": zeros, "ones": ones}) as units:
        assert units == {ones: 4.0}
        assert ones.requires_grad
    assert not ones.requires_grad


def test_inputs_of_another_origin_are_evaluated_on_and_all_others_trained_on() -> None:
    own, others = [torch.zeros(1, 3, 16, 16)] * 3, [torch.ones(1, 3, 16, 16)] * 2
    batches = Batches(
        own, size=8, batch=2, fraction=0.5, crops=4, generator=torch.Generator().manual_seed(0), elsewhere=others
    )
    assert all(bool((batch == 1).all()) for batch in batches.held)
    assert not any(bool(batch.any()) for batch in batches.fixed(8))


def test_codes_cannot_both_stay_and_change() -> None:
    with pytest.raises(InputError, match="keep_codes keeps the codes that rounding_lr would change"):
        build_pass("dqc", {"keep_codes": True, "rounding_lr": 0.1})
