"""The passes that observe and set bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fxptq.errors import CalibrationError, InputError
from fxptq.passes.base import Context, build_pass, run_passes
from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.observer import Histogram
from fxptq.quant.schemes.uniform import Uniform

BOUND_PASSES = ["minmax", "percentile", "dobi", "dobi2d"]


def test_observe_sees_the_float_network_and_leaves_it_as_it_was(context: Context) -> None:
    for quantizer in context.student.quantizers.values():
        quantizer.set_bounds(-0.01, 0.01)
        quantizer.mode = "on"
    run_passes([("observe", {})], context)
    assert {q.mode for q in context.student.quantizers.values()} == {"on"}
    assert all(q.observer is None for q in context.student.quantizers.values())
    assert set(context.statistics) == {"conv.input", "mix.input"}
    expected = Histogram()
    for image in context.images:
        expected.update(context.teacher.with_features(image)[1][0])
    seen = context.statistics["mix.input"]
    assert torch.equal(seen.counts, expected.distribution().counts)
    assert torch.equal(seen.maximum, expected.distribution().maximum)


def test_observe_names_the_quantizer_and_restores_modes_on_values_not_finite(context: Context) -> None:
    context.images = [torch.full((1, 3, 8, 8), math.nan)]
    with pytest.raises(CalibrationError, match=r"conv\.input: .*NaN"):
        run_passes([("observe", {})], context)
    assert {q.mode for q in context.student.quantizers.values()} == {"off"}
    assert not context.statistics


def test_observe_needs_images(context: Context) -> None:
    context.images = []
    with pytest.raises(InputError, match="at least one calibration image"):
        run_passes([("observe", {})], context)


@pytest.mark.parametrize("name", BOUND_PASSES)
def test_every_quantizer_gets_bounds_and_is_on(name: str, context: Context) -> None:
    report = run_passes([(name, {})], context)[-1]
    assert set(report.quantizers) == set(context.student.quantizers)
    for key, quantizer in context.student.quantizers.items():
        assert quantizer.mode == "on"
        assert bool((quantizer.width > 0).all())
        figures = report.quantizers[key]
        assert figures["lower"] == pytest.approx(float(quantizer.lower.detach().min()))
        assert figures["error"] > 0
        assert figures["snr_db"] > 0


@pytest.mark.parametrize("name", BOUND_PASSES)
def test_reported_error_is_that_of_the_quantized_weight(name: str, context: Context) -> None:
    report = run_passes([(name, {})], context)[-1]
    for key in ("conv.weight", "mix.weight"):
        weight = context.student.weight_of(key)
        assert weight is not None
        error = float((context.student.quantizers[key](weight) - weight).detach().double().square().mean())
        assert report.quantizers[key]["error"] == pytest.approx(error, rel=1e-4)
        power = float(weight.double().square().mean())
        assert report.quantizers[key]["snr_db"] == pytest.approx(10 * math.log10(power / error), abs=1e-2)


def test_weights_are_searched_exactly_and_by_group(context: Context) -> None:
    run_passes([("dobi", {})], context)
    weight = context.student.weight_of("conv.weight")
    assert weight is not None
    found = search.dobi_two_sided(Distribution.of(weight, 8), Uniform(3))
    assert torch.equal(context.student.quantizers["conv.weight"].lower, found.lower.float())


def test_dobi_takes_its_side_from_the_operand_unless_told(new_context: Callable[..., Context]) -> None:
    auto, two = new_context(), new_context()
    run_passes([("dobi", {})], auto)
    run_passes([("dobi", {"sided": "two"})], two)
    stats = auto.statistics["mix.input"]
    quantizer = auto.student.quantizers["mix.input"]
    assert quantizer.lower.item() == 0.0
    assert quantizer.upper.item() == pytest.approx(float(search.dobi_one_sided(stats, Uniform(3), lowest=0.0).upper))
    both = search.dobi_two_sided(stats, Uniform(3))
    assert two.student.quantizers["mix.input"].lower.item() == pytest.approx(float(both.lower))
    assert auto.student.quantizers["conv.input"].lower.item() == two.student.quantizers["conv.input"].lower.item()


def test_better_searches_leave_less_error(new_context: Callable[..., Context]) -> None:
    errors = {}
    for name in ("minmax", "dobi", "dobi2d"):
        ctx = new_context()
        report = run_passes([(name, {})], ctx)[-1]
        errors[name] = [report.quantizers[key]["error"] for key in sorted(report.quantizers)]
    assert all(a <= b for a, b in zip(errors["dobi"], errors["minmax"], strict=True))
    assert sum(errors["dobi2d"]) < sum(errors["dobi"])


def test_percentile_leaves_out_the_fraction(context: Context) -> None:
    run_passes([("percentile", {"p": 90.0})], context)
    stats = context.statistics["mix.input"]
    above = stats.counts[stats.values > context.student.quantizers["mix.input"].upper.item()].sum() / stats.total
    assert float(above) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [("percentile", {"p": 40}), ("percentile", {"p": 101}), ("dobi", {"k": 0}), ("dobi2d", {"k": 0})],
)
def test_settings_out_of_range_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"pass '{name}': {next(iter(options))} must be"):
        build_pass(name, options)


def test_missing_statistics_name_the_quantizer(context: Context) -> None:
    context.collected.add("histogram")
    with pytest.raises(CalibrationError, match=r"conv\.input: nothing was observed"):
        run_passes([("minmax", {})], context)


def test_the_order_of_images_changes_no_bound_of_minmax_and_hardly_one_of_dobi(
    new_context: Callable[..., Context],
) -> None:
    forward, backward = new_context(), new_context()
    backward.images = list(reversed(backward.images))
    for ctx in (forward, backward):
        run_passes([("dobi", {})], ctx)
    for key in forward.student.quantizers:
        a, b = forward.student.quantizers[key], backward.student.quantizers[key]
        assert torch.equal(a.lower, b.lower)
        assert torch.equal(a.width, b.width)
