"""Small charts as SVG inside the page: the histogram of an operand with its bounds, and a curve over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fxptq.report.content import Bounds, Curve, OperandRow
from fxptq.report.html import Markup, element

_WIDTH, _HEIGHT = 132, 36  # of a histogram
_POINTS = 240  # of a curve


def histogram(operand: OperandRow) -> Markup:
    """The values of an operand, by the square root of their number, and its bounds before and after distillation."""
    sketch, bounds = operand.sketch, [b for b in (operand.before, operand.after) if b is not None]
    if sketch is None and not bounds:
        return Markup("")
    ends = [end for pair in bounds for end in pair] + ([sketch.minimum, sketch.maximum] if sketch else [])
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return 1 + (value - low) / span * (_WIDTH - 2)

    drawn = []
    if sketch is not None:
        most = math.sqrt(max(sketch.counts)) or 1.0
        width = (x(sketch.maximum) - x(sketch.minimum)) / len(sketch.counts)
        steps = "".join(
            f"V{_HEIGHT - math.sqrt(count) / most * (_HEIGHT - 2):.0f}h{width:.2f}" for count in sketch.counts
        )
        drawn.append(element("path", d=f"M{x(sketch.minimum):.1f} {_HEIGHT}{steps}V{_HEIGHT}Z", class_="values"))
    for pair, name in ((operand.before, "before"), (operand.after, "after")):
        if pair is not None:
            lines = "".join(f"M{x(end):.1f} 0V{_HEIGHT}" for end in pair)
            drawn.append(element("path", d=lines, class_=name))
    return element(
        "svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", class_="histogram", role="img", aria_label=described(operand)
    )


def described(operand: OperandRow) -> str:
    """The histogram in words."""
    parts = [f"{operand.slot}, {operand.bits} bits"]
    if operand.sketch is not None:
        parts.append(f"values {_pair((operand.sketch.minimum, operand.sketch.maximum))}")
    if operand.before is not None:
        parts.append(f"first bounds {_pair(operand.before)}")
    if operand.after is not None:
        parts.append(f"{'final ' if operand.before else ''}bounds {_pair(operand.after)}")
    return "; ".join(parts)


def _pair(bounds: Bounds) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}"


def curve(data: Curve) -> Markup:
    """A curve with its first, last, lowest and highest value."""
    values = _thinned(data.values)
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 20
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    span = (top - bottom) or 1.0
    width, height, left = 420, 150, 64
    points = [
        (left + index / max(1, len(values) - 1) * (width - left - 8), 8 + (top - scale(value)) / span * (height - 36))
        for index, value in enumerate(values)
    ]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    floor = height - 28
    texts = [
        element("text", f"{high:.3g}", x=left - 6, y=14, text_anchor="end"),
        element("text", f"{low:.3g}", x=left - 6, y=floor, text_anchor="end"),
        element("text", f"{len(data.values)} {data.steps}", x=width - 8, y=height - 8, text_anchor="end"),
    ]
    told = (
        f"{data.title}: from {data.values[0]:.4g} to {data.values[-1]:.4g} over {len(data.values)} {data.steps}, "
        f"lowest {min(data.values):.4g}"
    )
    axes = element("path", d=f"M{left} 8V{floor}H{width - 8}", class_="axis")
    drawing = element(
        "svg",
        axes,
        element("path", d=path, class_="curve"),
        *texts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=told,
    )
    caption = data.title + (", logarithmic" if logarithmic else "")
    return element("figure", drawing, element("figcaption", caption), class_="chart")


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of equal parts, where there are more values than points."""
    if len(values) <= _POINTS:
        return list(values)
    cuts = [round(index * len(values) / _POINTS) for index in range(_POINTS + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
