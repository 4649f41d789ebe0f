"""Calibration by distillation: it helps, it repeats, it keeps the best state, and it fails safely."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxptq.errors import CalibrationError, InputError
from fxptq.graph.outputs import PictureOutput
from fxptq.passes.base import Context, PassReport, build_pass, run_passes
from fxptq.passes.crops import split
from fxptq.passes.offsets import movable_weights
from fxptq.passes.training import Training
from fxptq.passes.worth import worth
from fxptq.sizes import Sizes

QUICK = {"steps": 40, "batch": 4, "patch": 16, "eval_every": 10, "holdout": 0.3, "holdout_crops": 4}
NewContext = Callable[..., Context]


def calibrate(ctx: Context, **options: object) -> PassReport:
    return run_passes([("dobi", {}), ("dqc", {**QUICK, **options})], ctx)[-1]


def bounds(ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
    return {key: (q.lower.detach().clone(), q.width.detach().clone()) for key, q in ctx.student.quantizers.items()}


def equal(a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for key in a for x, y in zip(a[key], b[key], strict=True))


@pytest.mark.parametrize("scale", ["relative", "paper"])
def test_it_brings_the_output_closer_to_the_float_network(new_context: NewContext, scale: str) -> None:
    ctx = new_context()
    unseen = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))

    def error() -> float:
        with torch.no_grad():
            return float((ctx.student(unseen) - ctx.teacher(unseen)).abs().mean())

    run_passes([("dobi", {})], ctx)
    before = error()
    report = run_passes([("dqc", {**QUICK, "steps": 120, "feature_scale": scale})], ctx)[-1]
    assert error() < 0.9 * before
    assert len(report.series["loss"]) == 120
    assert min(report.series["held_out_loss"]) < report.series["held_out_loss"][0]
    assert set(report.quantizers) == set(ctx.student.quantizers)


def test_it_repeats_with_the_seed(new_context: NewContext) -> None:
    first, second, other = new_context(), new_context(), new_context()
    other.seed = 7
    reports = [calibrate(ctx) for ctx in (first, second, other)]
    assert equal(bounds(first), bounds(second))
    assert reports[0].series == reports[1].series
    assert not equal(bounds(first), bounds(other))


def teacher_calls(ctx: Context, **options: object) -> int:
    """How often the float network runs while dqc does."""
    run, calls = ctx.teacher.with_features, 0

    def counting(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        nonlocal calls
        calls += 1
        return run(x)

    ctx.teacher.with_features = counting  # type: ignore[method-assign]
    calibrate(ctx, **options)
    return calls


def test_with_fixed_crops_it_repeats_whatever_memory_the_answers_may_take(new_context: NewContext) -> None:
    contexts = [new_context() for _ in range(3)]
    budgets = (1000, 1000, 0)
    calls = [teacher_calls(ctx, crops=9, answers_mb=mb) for ctx, mb in zip(contexts, budgets, strict=True)]
    assert calls == [4, 4, 41]  # three batches or forty steps, and the held-out crops
    assert equal(bounds(contexts[0]), bounds(contexts[1]))
    assert equal(bounds(contexts[0]), bounds(contexts[2]))


def test_fixed_crops_bring_it_closer_too(new_context: NewContext) -> None:
    held_out = calibrate(new_context(), crops=8, steps=80).series["held_out_loss"]
    assert min(held_out) < 0.9 * held_out[0]


def test_kernels_are_installed_before_observing_searching_and_training(new_context: NewContext) -> None:
    ctx, installed = new_context(), []
    ctx.install_kernels = lambda: installed.append(True)
    run_passes([("observe", {})], ctx)
    assert installed == [True]
    run_passes([("dobi", {})], ctx)
    assert installed == [True, True]
    run_passes([("dqc", QUICK)], ctx)
    assert installed == [True, True, True]


def test_what_is_kept_is_the_best_on_held_out_crops_and_folded(new_context: NewContext) -> None:
    ctx = new_context()
    report = calibrate(ctx, lr=0.05, schedule="constant")
    best = min(report.series["held_out_loss"])
    again = run_passes([("dqc", {**QUICK, "steps": 1, "lr": 1e-9, "eval_every": 1})], ctx)[-1]
    assert again.series["held_out_loss"][0] == pytest.approx(best, rel=1e-6)
    assert not any(q.shift.any() or q.log_scale.any() for q in ctx.student.quantizers.values())


@pytest.mark.parametrize(("kind", "power"), [("absolute", 1), ("squared", 2), ("relative", 2)])
def test_the_loss_is_the_difference_that_was_asked_for(new_context: NewContext, kind: str, power: int) -> None:
    ctx = new_context()  # squares, so that the only crop of this side is the picture
    ctx.images = list(torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(3)).split(1))
    run_passes([("dobi", {})], ctx)
    _, (held,) = split(ctx.images, 0.1, torch.Generator().manual_seed(ctx.seed))
    with torch.no_grad():
        expected = float((ctx.student(held) - ctx.teacher(held)).double().abs().pow(power).mean())
        expected *= float(worth(ctx.teacher(held), ctx.white)) if kind == "relative" else 1.0
    one = {**QUICK, "holdout": 0.1, "holdout_crops": 1, "holdout_patch": 24, "feature_weight": 0.0}
    losses = run_passes([("dqc", {**one, "output_loss": kind})], ctx)[-1].series["held_out_loss"]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert min(losses) < losses[0]


def test_a_ruinous_rate_leaves_the_initial_bounds(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    before = bounds(ctx)
    report = run_passes([("dqc", {**QUICK, "lr": 1.0, "schedule": "constant", "backoff": 1.0})], ctx)[-1]
    assert "at step 0 of 40" in report.notes[0]
    assert equal(bounds(ctx), before)


def test_a_rate_that_makes_things_worse_is_lowered_until_it_helps(new_context: NewContext) -> None:
    ctx = new_context()
    report = calibrate(ctx, lr=1.0, schedule="constant", steps=80, backoff=0.1)
    held_out = report.series["held_out_loss"]
    assert held_out[1] > held_out[0] > min(held_out)
    assert "lowered" in report.notes[1]


@pytest.mark.parametrize(
    ("schedule", "halfway", "lowered"),
    [("cosine", 1.9, False), ("cosine", 2.1, True), ("constant", 1.1, True), ("constant", 0.9, False)],
)
def test_a_rate_is_lowered_where_its_noise_will_not_go(
    new_context: NewContext, monkeypatch: pytest.MonkeyPatch, schedule: str, halfway: float, lowered: bool
) -> None:
    losses = iter([1.0, halfway, 0.8])
    monkeypatch.setattr(Training, "evaluate", lambda self: next(losses))  # noqa: ARG005
    report = calibrate(new_context(), steps=40, eval_every=20, backoff=0.1, schedule=schedule)
    assert report.series["held_out_loss"] == (1.0, halfway, 0.8)
    assert any("lowered" in note for note in report.notes) == lowered


def test_a_rate_that_helps_is_not_lowered(new_context: NewContext) -> None:
    plain, ready = (calibrate(new_context(), backoff=backoff) for backoff in (1.0, 0.1))
    assert max(plain.series["held_out_loss"]) == plain.series["held_out_loss"][0]
    assert ready.series == plain.series
    assert len(ready.notes) == 1


def test_bounds_of_weights_stay_when_told(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    before = bounds(ctx)
    report = run_passes([("dqc", {**QUICK, "weight_lr": 0.0})], ctx)[-1]
    after = bounds(ctx)
    assert set(report.quantizers) == {"conv.input", "mix.input"}
    for key in before:
        assert torch.equal(before[key][1], after[key][1]) == key.endswith("weight")
    assert all(p.requires_grad and p.grad is None for q in ctx.student.quantizers.values() for p in q.parameters())


def test_bounds_of_weights_have_a_rate_of_their_own(new_context: NewContext) -> None:
    alone = new_context()
    run_passes([("dobi", {})], alone)
    before = bounds(alone)
    report = run_passes([("dqc", {**QUICK, "lr": 0.0, "weight_lr": 0.02})], alone)[-1]
    after = bounds(alone)
    assert set(report.quantizers) == {"conv.weight", "mix.weight"}
    for key in before:
        assert torch.equal(before[key][1], after[key][1]) != key.endswith("weight")
    one, other, same = (new_context() for _ in range(3))
    calibrate(one, weight_lr=0.001)
    calibrate(other)
    calibrate(same, weight_lr=0.03)
    assert equal(bounds(other), bounds(same))
    assert not equal(bounds(other), bounds(one))


def test_with_nothing_that_learns_nothing_is_trained(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    for key, quantizer in ctx.student.quantizers.items():
        if key.endswith("weight"):
            quantizer.mode = "off"
    before = bounds(ctx)
    report = run_passes([("dqc", {**QUICK, "lr": 0.0, "weight_lr": 0.02})], ctx)[-1]
    assert report.notes == ("the picture depends on nothing that learns: nothing was trained",)
    assert equal(bounds(ctx), before)


def test_groups_of_zero_width_stay_flat(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    quantizer = ctx.student.quantizers["conv.weight"]
    width = quantizer.width.detach().clone()
    width[2] = 0.0
    quantizer.restore({"lower": quantizer.lower, "width": width})
    run_passes([("dqc", QUICK)], ctx)
    assert quantizer.width[2] == 0
    assert quantizer.width.isfinite().all()


def test_a_loss_that_is_not_finite_restores_the_best_state_and_names_the_step(
    new_context: NewContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    before = bounds(ctx)
    run, calls = ctx.student.with_features, 0

    def failing(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        nonlocal calls
        calls += 1
        y, features = run(x)
        return (y * float("nan") if calls == 6 else y), features

    monkeypatch.setattr(ctx.student, "with_features", failing)
    with pytest.raises(CalibrationError, match="loss is nan at step 5; try a lower `lr`"):
        run_passes([("dqc", QUICK)], ctx)
    assert equal(bounds(ctx), before)
    assert all(p.requires_grad for q in ctx.student.quantizers.values() for p in q.parameters())


@pytest.mark.parametrize("rate", [2000.0, 1e30])
def test_a_quantizer_whose_bounds_diverge_is_named(new_context: NewContext, rate: float) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    before = bounds(ctx)
    with pytest.raises(CalibrationError, match=r"the bounds of conv\.\w+ diverged at step 1; try a lower"):
        run_passes([("dqc", {**QUICK, "lr": rate, "schedule": "constant"})], ctx)
    assert equal(bounds(ctx), before)


def test_it_stops_early_when_nothing_gets_better(new_context: NewContext) -> None:
    ctx = new_context()
    report = calibrate(ctx, steps=400, lr=1.0, schedule="constant", patience=2, backoff=1.0)
    assert len(report.series["loss"]) == 20


def test_it_stops_at_the_time_limit(new_context: NewContext) -> None:
    ctx = new_context()
    report = calibrate(ctx, steps=1_000_000, time_limit_s=0.3)
    assert 1 <= len(report.series["loss"]) < 10_000


def test_what_the_last_moment_reached_is_judged_and_kept(
    new_context: NewContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, clock = new_context(), itertools.count()
    run_passes([("dobi", {})], ctx)
    monkeypatch.setattr("fxptq.passes.training.time.perf_counter", lambda: float(next(clock)))
    report = run_passes([("dqc", {**QUICK, "steps": 10**6, "eval_every": 10**6, "time_limit_s": 60.0})], ctx)[-1]
    held_out = report.series["held_out_loss"]
    assert 20 <= len(report.series["loss"]) <= 40
    assert len(held_out) == 2
    assert held_out[1] < held_out[0]
    assert f"at step {len(report.series['loss'])} of" in report.notes[0]


@pytest.mark.parametrize("wrap", [lambda y: [y.mean(), y], lambda y: {0: y.detach(), 1: y}], ids=["list", "dict"])
def test_the_picture_among_several_outputs_is_learned_from(
    new_context: NewContext, wrap: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ctx = new_context(), new_context()
    for network in (ctx.student, ctx.teacher):
        whole = network.with_features
        monkeypatch.setattr(network, "with_features", lambda x, whole=whole: (wrap((found := whole(x))[0]), found[1]))
    ctx.picture = PictureOutput((1,))
    assert calibrate(ctx).series == calibrate(plain).series


def test_a_network_of_single_pictures_gets_one_crop_at_a_time(
    new_context: NewContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, seen = new_context(), set()
    run_passes([("dobi", {})], ctx)
    ctx.batches, ctx.sizes = False, Sizes(multiple=5)
    whole = ctx.student.with_features
    monkeypatch.setattr(ctx.student, "with_features", lambda x: (seen.add(tuple(x.shape)), whole(x))[1])
    assert run_passes([("dqc", QUICK)], ctx)[-1].series["loss"]
    assert seen == {(1, 3, 15, 15)}


def test_crops_to_judge_by_may_be_larger_than_those_to_train_on(
    new_context: NewContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, sides = new_context(), {True: set[int](), False: set[int]()}
    run_passes([("dobi", {})], ctx)
    whole = ctx.student.with_features
    monkeypatch.setattr(
        ctx.student, "with_features", lambda x: (sides[torch.is_grad_enabled()].add(x.shape[-1]), whole(x))[1]
    )
    run_passes([("dqc", {**QUICK, "patch": 8, "holdout_patch": 16})], ctx)
    assert sides == {True: {8}, False: {16}}


def test_a_picture_that_no_gradient_reaches_leaves_bounds_alone(
    new_context: NewContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    before, whole = bounds(ctx), ctx.student.with_features
    monkeypatch.setattr(ctx.student, "with_features", lambda x: (whole(x)[0].detach().round(), []))
    report = run_passes([("dqc", {**QUICK, "feature_weight": 0.0})], ctx)[-1]
    assert report.notes == ("the picture depends on nothing that learns: nothing was trained",)
    assert equal(bounds(ctx), before)


def test_a_network_without_ranges_has_nothing_to_train(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    for quantizer in ctx.student.quantizers.values():
        quantizer.set_bounds(quantizer.lower, quantizer.lower)
    assert run_passes([("dqc", QUICK)], ctx)[-1].notes == ("no quantizer has a range to train",)
    ctx.student.quantizers.clear()
    assert run_passes([("dqc", QUICK)], ctx)[-1].notes == ("no quantizer has a range to train",)


def test_warmup_and_cosine_shape_the_rate(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    rates: list[float] = []
    step = torch.optim.Adam.step

    def noting(self: torch.optim.Adam, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", noting)
        run_passes([("dqc", {**QUICK, "lr": 0.07, "warmup": 4})], ctx)
    # Seven steps make the width, which is the parameters' unit.
    assert rates[0] == pytest.approx(0.01 / 5)
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"lr": 0.0}, "nothing learns: give one of lr, weight_lr, rounding_lr, vector_lr above 0"),
        ({"weight_lr": -0.1}, "weight_lr must not be negative"),
        ({"time_limit_s": 0.0}, "time_limit_s must be above 0"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"crops": -1}, "crops must not be negative"),
        ({"answers_mb": -1}, "answers_mb must not be negative"),
        ({"backoff": 0.0}, "backoff lies above 0"),
        ({"betas": [0.9, 1.0]}, "betas and holdout lie between"),
        ({"schedule": "cosin"}, "setting 'schedule'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"pass 'dqc'.*{message}"):
        build_pass("dqc", options)


def test_it_needs_bounds_and_images(context: Context) -> None:
    with pytest.raises(InputError, match="run a pass such as `dobi` before it"):
        run_passes([("dqc", QUICK)], context)
    run_passes([("minmax", {})], context)
    context.images = []
    with pytest.raises(InputError, match="needs calibration images"):
        run_passes([("dqc", QUICK)], context)


def test_weights_that_may_change_codes_bring_it_closer_still(new_context: NewContext) -> None:
    plain, moved = new_context(bits=2), new_context(bits=2)
    before = moved.student.weight_of("conv.weight")
    assert before is not None
    before = before.clone()
    a = calibrate(plain, steps=80, backoff=1.0)
    b = calibrate(moved, steps=80, rounding_lr=0.02)
    assert min(b.series["held_out_loss"]) < min(a.series["held_out_loss"])
    after = moved.student.weight_of("conv.weight")
    assert after is not None
    assert not torch.equal(before, after)
    quantizer = moved.student.quantizers["conv.weight"]
    assert bool((quantizer.encode(before) != quantizer.encode(after)).any())
    assert not any(q._forward_pre_hooks for q in moved.student.quantizers.values())


def test_the_state_that_is_kept_includes_the_weights(new_context: NewContext) -> None:
    ctx = new_context()
    report = calibrate(ctx, rounding_lr=0.02)
    again = run_passes([("dqc", {**QUICK, "steps": 1, "lr": 1e-9, "eval_every": 1})], ctx)[-1]
    assert again.series["held_out_loss"][0] == pytest.approx(min(report.series["held_out_loss"]), rel=1e-5)


def test_weights_that_two_quantizers_read_are_left_alone(new_context: NewContext) -> None:
    ctx = new_context()
    run_passes([("dobi", {})], ctx)
    assert set(movable_weights(ctx.student)) == {"conv.weight", "mix.weight"}
    ctx.student.mix = ctx.student.conv  # type: ignore[attr-defined]
    assert not movable_weights(ctx.student)
