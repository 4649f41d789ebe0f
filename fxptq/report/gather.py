"""From the outcome of a command to the content of its page. Nothing is drawn here, and no network runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxptq.checkpoint.file import ByteCounts
from fxptq.commands.compare import Comparison
from fxptq.commands.machine import described
from fxptq.commands.quantize import Outcome
from fxptq.graph import Program, Site
from fxptq.graph.topology import flow
from fxptq.passes.base import PassReport, get_pass
from fxptq.quant.sketch import Sketch
from fxptq.quantized import QuantizedModel
from fxptq.report.content import Content, Curve, OperandRow, SiteRow, Step
from fxptq.report.layout import Layout, arrange

_PARTS = ("codes", "bounds", "floats", "metadata", "header")


def of_quantize(outcome: Outcome, command: str) -> Content:
    """The content for `fxptq quantize`.

    Args:
        outcome: what was done.
        command: the command line that did it.
    """
    model, meta = outcome.model, outcome.model.meta
    intro = [f"Calibrated on {meta.calibration}.", f"Seed {meta.seed}.", f"Written by {meta.created_by}."]
    if outcome.inferred:
        intro.insert(0, f"{outcome.source.name} is taken for: {outcome.inferred}.")
    return Content(
        title=f"{outcome.source.recipe.title}, W{meta.bits_w}A{meta.bits_a}",
        intro=tuple(intro),
        first="float",
        second="quantized",
        stages=outcome.scores,
        keys=("fp", "final"),
        sizes=_sizes(outcome.sizes),
        total=outcome.sizes.total,
        compared_bytes=outcome.fp32_bytes,
        contrast=outcome.contrast,
        sites=_sites(model.program, model.report, white=outcome.source.recipe.input.range),
        layout=drawn(model.program),
        steps=tuple(Step(report.name, report.seconds, report.notes) for report in model.report),
        curves=tuple(_curves(model.report)),
        seconds=outcome.seconds,
        made_by={"Command": command, **described()},
        artefacts=model.quality.figures,
        warnings=model.quality.warnings,
    )


def of_compare(comparison: Comparison, command: str) -> Content:
    """The content for `fxptq compare`."""
    first, second = comparison.first, comparison.second
    swapped = second.quantized is None
    shown = first.quantized if swapped else second.quantized
    assert shown is not None  # noqa: S101  # of two networks one at least is a checkpoint
    other = None if swapped else first.quantized
    sizes = (first if swapped else second).sizes
    return Content(
        title=f"{second.name} compared with {first.name}",
        intro=tuple(f"{side.name}: {_origin(side.quantized)}." for side in (first, second)),
        first=first.name,
        second=second.name,
        stages=comparison.scores,
        keys=(first.name, second.name),
        sizes=_sizes(sizes) if sizes is not None else {},
        total=second.nbytes,
        compared_bytes=first.nbytes,
        contrast=comparison.contrast,
        sites=_sites(shown.program, (), other.program if other else None),
        layout=drawn(shown.program),
        steps=(),
        curves=(),
        seconds={},
        made_by={"Command": command, **described()},
        artefacts={},
        warnings=(),
    )


def _origin(model: QuantizedModel | None) -> str:
    if model is None:
        return "the network in float, with its trained weights"
    passes = " + ".join(step.name for step in model.meta.passes)
    return f"W{model.meta.bits_w}A{model.meta.bits_a} by {passes}, calibrated on {model.meta.calibration}"


def _sizes(counts: ByteCounts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in _PARTS}


def drawn(program: Program) -> Layout:
    """The drawing of a graph of the program: its first, or the oldest that is kept of those for other sizes."""
    variant = program.variants[0]
    nodes = {site.name: site.node for site in variant.sites}
    return arrange(flow(variant.capture.graph), [(nodes.get(site.name, ""), site.name) for site in program.sites])


def _sites(
    program: Program, reports: Sequence[PassReport], other: Program | None = None, *, white: float = 1.0
) -> tuple[SiteRow, ...]:
    found = _Found.of(reports)
    total = sum(site.macs for site in program.sites) or 1
    others = {site.name: _bits(site) for site in other.sites} if other is not None else None
    return tuple(
        SiteRow(
            name=site.name,
            kind=site.kind,
            role=site.role + (f", {site.edge}" if site.edge else ""),
            share=site.macs / total,
            bits=None if None in site.bits else site.bits,  # type: ignore[arg-type]  # neither is None then
            reason=site.reason,
            operands=tuple(_operands(site, program, found)),
            sensitivity=_sensitivity(site, reports, white),
            other_bits=None if others is None else others.get(site.name, "no such site"),
        )
        for site in program.sites
    )


def _sensitivity(site: Site, reports: Sequence[PassReport], white: float) -> float | None:
    """RMS error of the output in levels, of the operands' mean squared errors that a pass has measured."""
    keys = {operand.quantizer for operand in site.operands if operand.quantizer}
    for report in reversed(reports):
        known = [
            report.quantizers[key]["sensitivity"] for key in keys if "sensitivity" in report.quantizers.get(key, {})
        ]
        if known:
            return math.sqrt(sum(known)) * 255 / white
    return None


def _bits(site: Site) -> str:
    return "float" if site.reason else "/".join(map(str, site.bits))


def _operands(site: Site, program: Program, found: _Found) -> list[OperandRow]:
    rows = []
    for operand in site.operands:
        if operand.bits is None or operand.quantizer not in program.quantizers:
            continue
        quantizer = program.quantizers[operand.quantizer]
        figures = found.figures.get(operand.quantizer, {})
        rows.append(
            OperandRow(
                slot=operand.slot,
                bits=operand.bits,
                ranges=operand.ranges,
                before=_bounds(figures),
                after=_bounds(quantizer.figures()),
                snr_db=figures.get("snr_db"),
                sketch=found.sketches.get(operand.quantizer),
            )
        )
    return rows


def _bounds(figures: Mapping[str, float]) -> tuple[float, float] | None:
    if "lower" not in figures or "upper" not in figures:
        return None
    return figures["lower"], figures["upper"]


@dataclass(frozen=True)
class _Found:
    """What the passes that set bounds have found, by quantizer key; of several, the last.

    Attributes:
        figures: the figures of the report, the first bounds among them.
        sketches: histograms of the values.
    """

    figures: Mapping[str, Mapping[str, float]]
    sketches: Mapping[str, Sketch]

    @classmethod
    def of(cls, reports: Sequence[PassReport]) -> _Found:
        setting = [report for report in reports if get_pass(report.name).sets_bounds]
        figures = {
            key: found for report in setting for key, found in report.quantizers.items() if _bounds(found) is not None
        }
        return cls(figures, {key: sketch for report in setting for key, sketch in report.sketches.items()})


def _curves(reports: Sequence[PassReport]) -> list[Curve]:
    curves = []
    for report in reports:
        for name, values in report.series.items():
            if len(values) > 1:
                unit = "evaluations" if name.startswith("held_out") else "steps"
                curves.append(Curve(f"{report.name}: {name.replace('_', ' ')}", unit, values))
    return curves
