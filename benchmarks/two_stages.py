"""Draws docs/images/stage1.svg and stage2.svg: the two stages of a calibration, on a real operand of EDSR-baseline x4.

    python -m benchmarks.two_stages

Stage 1 shows the values of one operand with the eight values of a 3-bit grid, between the extremes and between the
bounds that DOBI finds. Stage 2 shows the float network as the teacher of the quantized one, and the loss of this run.
"""

from __future__ import annotations

from pathlib import Path

import torch

import fxptq
from fxptq.commands.source import example_of, open_network
from fxptq.passes.base import PassReport
from fxptq.quant.sketch import Sketch
from fxptq.report.html import Markup, element

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SITE, BITS = "body.3.body.0", 3
WIDTH = 760
STYLE = (
    "text{font:14px sans-serif;fill:#1d2227}.small{font-size:12px;fill:#5b6570}.values{fill:#b9d3ec}"
    ".grid{stroke:#c23b3b;stroke-width:2}.box{fill:#f4f6f8;stroke:#5b6570}.line{stroke:#0b63b5;stroke-width:2;fill:none}"
    ".flow{stroke:#5b6570;stroke-width:1.5;fill:none;marker-end:url(#tip)}.back{stroke:#c23b3b;stroke-width:1.5;fill:none;"
    "stroke-dasharray:5 3;marker-end:url(#tip)}"
)


def main() -> None:
    """Quantizes, and draws both pictures."""
    recipe = fxptq.Recipe.load("edsr_x4")
    source = open_network("edsr_x4")
    settings = [{"name": "observe"}, {"name": "dobi"}, {"name": "dqc", **DQC}]
    presets = {"standard": {"images": 4, "passes": settings}}
    recipe = type(recipe).model_validate({**recipe.model_dump(), "presets": presets})
    torch.set_num_threads(1)
    q = fxptq.quantize(source.model, example_of(recipe), fxptq.Bits(BITS, BITS), recipe=recipe)
    reports = {report.name: report for report in q.report}
    key = next(site for site in q.sites if site.name == SITE).operand("input").quantizer
    (IMAGES / "stage1.svg").write_text(stage1(key, reports["dobi"]), encoding="utf-8")
    (IMAGES / "stage2.svg").write_text(stage2(reports["dqc"]), encoding="utf-8")


DQC = {
    "steps": 40, "batch": 2, "lr": 0.01, "patch": 32, "crops": 8, "feature_weight": 0.0, "holdout_crops": 2,
    "eval_every": 4,
}  # fmt: skip
"""The settings of the distillation."""


def stage1(key: str, report: PassReport) -> str:
    """The values of an operand twice, with the grid between the extremes and with the grid that DOBI finds."""
    sketch, figures = report.sketches[key], report.quantizers[key]
    panels = [
        ("MinMax: the grid reaches from the smallest to the largest value", sketch.minimum, sketch.maximum, 40),
        (
            f"DOBI: the bounds of least squared error; {figures['snr_db']:.1f} dB signal to noise",
            figures["lower"], figures["upper"], 220,
        ),
    ]  # fmt: skip
    drawn = [panel(sketch, *one) for one in panels]
    told = (
        f"The values of the input of {SITE} in EDSR, and the eight values of a 3-bit grid before and after the search"
    )
    return svg(
        400,
        told,
        *drawn,
        text(
            "Red lines are the eight values that 3 bits can represent. Heights are square roots of counts.",
            20,
            388,
            "small",
        ),
    )


def panel(sketch: Sketch, title: str, lower: float, upper: float, top: int) -> Markup:
    """One histogram with a grid."""
    height, span = 110, sketch.maximum - sketch.minimum
    most = max(sketch.counts) ** 0.5

    def x(value: float) -> float:
        return 20 + (value - sketch.minimum) / span * (WIDTH - 40)

    step = (WIDTH - 40) / len(sketch.counts)
    tops = "".join(f"V{top + height - count**0.5 / most * height:.1f}h{step:.2f}" for count in sketch.counts)
    bars = element("path", d=f"M20 {top + height}{tops}V{top + height}Z", class_="values")
    grid = [lower + (upper - lower) * code / (2**BITS - 1) for code in range(2**BITS)]
    lines = "".join(f"M{x(value):.1f} {top}V{top + height + 6}" for value in grid)
    ends = [text(f"{value:.3g}", x(value), top + height + 22, "small", "middle") for value in (grid[0], grid[-1])]
    return element("g", text(title, 20, top - 10), bars, element("path", d=lines, class_="grid"), *ends)


def stage2(report: PassReport) -> str:
    """Teacher and student, and the loss on held-out crops."""
    losses = report.series["held_out_loss"]
    boxes = [
        box("calibration picture", 20, 90, 150), box("float network (teacher)", 230, 40, 220),
        box("quantized network (student)", 230, 140, 220), box("difference", 540, 90, 110),
    ]  # fmt: skip
    flows = ["M170 108C205 108 205 58 228 58", "M170 108C205 108 205 158 228 158", "M450 58C490 58 490 100 538 104",
             "M450 158C490 158 490 116 538 112"]  # fmt: skip
    arrows = [element("path", d=flow, class_="flow") for flow in flows]
    arrows.append(element("path", d="M595 126C595 205 400 210 340 178", class_="back"))
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    points = [
        (70 + index / (len(losses) - 1) * 600, 260 + (high - loss) / span * 100) for index, loss in enumerate(losses)
    ]
    curve = element("path", d="M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points), class_="line")
    told = "The float network teaches the quantized one: the difference of their pictures moves the bounds"
    return svg(
        400, told, *boxes, *arrows,
        text("moves the bounds", 500, 205, "small"),
        text(f"{high:.3g}", 60, 264, "small", "end"), text(f"{low:.3g}", 60, 364, "small", "end"), curve,
        text(f"Loss on held-out crops over {DQC['steps']} steps", 70, 388, "small"),
    )  # fmt: skip


def box(label: str, x: int, y: int, width: int) -> Markup:
    """A box with a label."""
    frame = element("rect", x=x, y=y, width=width, height=36, rx=6, class_="box")
    return element("g", frame, text(label, x + width / 2, y + 23, "", "middle"))


def text(content: str, x: float, y: float, kind: str = "", anchor: str = "start") -> Markup:
    """A line of text."""
    return element("text", content, x=f"{x:g}", y=y, class_=kind or None, text_anchor=anchor)


def svg(height: int, told: str, *children: Markup) -> str:
    """A picture of its own on white paper."""
    tip = Markup(
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8Z" fill="#5b6570"/></marker></defs>'
    )
    paper = element("rect", x=0, y=0, width=WIDTH, height=height, fill="#ffffff")
    return element(
        "svg", element("title", told), element("style", Markup(STYLE)), tip, paper, *children,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", role="img",
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
