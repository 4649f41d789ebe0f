"""Charts inside the page: what they say in words, and that they draw every bound."""

from __future__ import annotations

import numpy as np
import pytest

from fxptq.quant.sketch import Sketch
from fxptq.report.charts import curve, histogram
from fxptq.report.content import Curve, OperandRow
from fxptq.report.html import Markup, element
from fxptq.report.pictures import FULL, difference, palette


def test_a_histogram_tells_its_values_and_bounds() -> None:
    row = OperandRow("input", 3, 1, (-1.0, 2.0), (-0.5, 1.5), 12.0, Sketch(-3.0, 4.0, (1, 4, 9, 0)))
    drawn = histogram(row)
    assert 'aria-label="input, 3 bits; values -3 to 4; first bounds -1 to 2; final bounds -0.5 to 1.5"' in drawn
    assert drawn.count("<path") == 3
    assert 'class="before"' in drawn
    assert 'class="after"' in drawn


@pytest.mark.parametrize(
    "sketch", [None, Sketch(1.0, 1.0, (5,)), Sketch(0.0, 0.0, (1,))], ids=["none", "constant", "zero"]
)
def test_histograms_without_values_or_width(sketch: Sketch | None) -> None:
    row = OperandRow("weight", 4, 3, None, (1.0, 1.0), None, sketch)
    drawn = histogram(row)
    assert "bounds 1 to 1" in drawn
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert histogram(OperandRow("weight", 4, 1, None, None, None, None)) == ""


@pytest.mark.parametrize("values", [(2.0, 1.0), (1.0, 1.0), (1e4, 1.0, -1.0), tuple(map(float, range(1, 5000)))])
def test_a_curve_tells_its_ends(values: tuple[float, ...]) -> None:
    drawn = curve(Curve("dqc: loss", "steps", values))
    assert f"from {values[0]:.4g} to {values[-1]:.4g} over {len(values)} steps, lowest {min(values):.4g}" in drawn
    assert drawn.count("L") <= 240
    assert "nan" not in drawn


def test_everything_that_is_no_markup_is_escaped() -> None:
    made = element("td", "<b>&'\"", Markup("<i>ok</i>"), data_x='"><script>', hidden=True, title=None)
    assert made == '<td data-x="&quot;&gt;&lt;script&gt;" hidden>&lt;b&gt;&amp;&#x27;&quot;<i>ok</i></td>'


def test_the_error_map_is_the_mean_difference_over_channels() -> None:
    first = np.zeros((1, 4, 3), np.uint8)
    second = np.array([[[0, 0, 0], [3, 0, 0], [FULL] * 3, [255] * 3]], np.uint8)
    assert difference(first, second).tolist() == [[0, round(255 / FULL), 255, 255]]
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3).astype(int).sum(1)
    assert (np.diff(colours) >= 0).all()
