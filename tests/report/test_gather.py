"""From reports of passes to rows: the bounds before distillation are those of the passes that set bounds."""

from __future__ import annotations

import pytest
import torch

import fxptq
from fxptq.passes.base import PassReport
from fxptq.quant.sketch import Sketch
from fxptq.report import gather
from tests.tiny import inputs, settings


@pytest.fixture(scope="module")
def model() -> fxptq.QuantizedModel:
    """Two convolutions with bounds."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1))
    return fxptq.quantize(network, inputs(1), fxptq.Bits(4, 4), inputs(), settings())


def test_the_rows_of_a_run(model: fxptq.QuantizedModel) -> None:
    rows = gather._sites(model.program, model.report)
    assert [row.name for row in rows] == [site.name for site in model.sites]
    assert sum(row.share for row in rows) == pytest.approx(1)
    for row, site in zip(rows, model.sites, strict=True):
        assert row.bits == site.bits
        for operand, source in zip(row.operands, site.operands, strict=True):
            quantizer = model.program.quantizers[source.quantizer]
            assert operand.after == pytest.approx(
                (float(quantizer.lower.detach().min()), float(quantizer.upper.detach().max()))
            )
            assert operand.before == pytest.approx(operand.after)  # nothing was distilled
            assert operand.sketch is not None
            assert operand.before is not None
            assert operand.sketch.minimum == pytest.approx(operand.before[0])  # min-max
            assert operand.sketch.maximum == pytest.approx(operand.before[1])


def test_bounds_are_of_the_last_pass_that_sets_them(model: fxptq.QuantizedModel) -> None:
    key = model.sites[0].operands[0].quantizer

    def report(name: str, lower: float, **more: float) -> PassReport:
        figures = {key: {"lower": lower, "upper": 1.0, **more}}
        return PassReport(figures, sketches={key: Sketch(lower, 1.0, (1,))}, name=name)

    reports = [report("minmax", -3.0, snr_db=5.0), report("dobi", -2.0, snr_db=9.0), report("dqc", -1.0)]
    first = gather._sites(model.program, reports)[0].operands[0]
    assert (first.before, first.snr_db) == ((-2.0, 1.0), 9.0)
    assert first.sketch == Sketch(-2.0, 1.0, (1,))


def test_sensitivity_is_the_error_of_the_output_in_levels(model: fxptq.QuantizedModel) -> None:
    keys = [operand.quantizer for operand in model.sites[0].operands]
    reports = [PassReport({key: {"sensitivity": 4e-6} for key in keys}, name="dqc")]
    first, second = gather._sites(model.program, reports, white=1.0)
    assert first.sensitivity == pytest.approx(255 * (8e-6) ** 0.5)
    assert second.sensitivity is None
    assert gather._sites(model.program, reports, white=255.0)[0].sensitivity == pytest.approx((8e-6) ** 0.5)
