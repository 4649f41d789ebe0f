"""What the table of a bench says below it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fxptq.bench.measure import Bench, Row
from fxptq.report.console import show_bench


def printed(*rows: Row) -> str:
    stream = io.StringIO()
    show_bench(Console(file=stream, width=200), Bench("64x64", 1, "avx2", rows))
    return stream.getvalue()


EAGER, INTEGER = Row("eager-fp32", 30.0, prepare_s=1.0), Row("fxptq-int", 10.0, prepare_s=1.0)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ((EAGER, INTEGER), "fxptq-int is 3.00 times as fast as eager-fp32, the fastest float here (avx2 kernels)"),
        (
            (EAGER, Row("openvino-fp32", 5.0, prepare_s=1.0), INTEGER, Row("openvino-int8", 1.0, prepare_s=1.0)),
            "fxptq-int is SLOWER (0.50x) than openvino-fp32, the fastest float here (avx2 kernels)",
        ),
    ],
    ids=["faster", "slower than a peer in float"],
)
def test_the_verdict_is_one_line(rows: tuple[Row, ...], line: str) -> None:
    assert line in printed(*rows).splitlines()


@pytest.mark.parametrize(
    "rows",
    [(EAGER,), (INTEGER,), (EAGER, Row("fxptq-int", None, note="fails"))],
    ids=["float alone", "integers alone", "integers that fail"],
)
def test_without_both_figures_there_is_no_verdict(rows: tuple[Row, ...]) -> None:
    assert "fastest float" not in printed(*rows)
