"""The content of a report, as data: what `gather` finds and `page` draws. Figures are numbers here, not texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxptq.evaluate.contrast import Contrast
from fxptq.evaluate.score import SetScore
from fxptq.quant.sketch import Sketch
from fxptq.report.layout import Layout

Bounds = tuple[float, float]


@dataclass(frozen=True)
class OperandRow:
    """One operand of a site.

    Attributes:
        slot: input, weight, lhs or rhs.
        bits: its bit width.
        ranges: number of pairs of bounds.
        before: lowest and highest bound after the pass that set the bounds; None where no pass of this run did.
        after: lowest and highest bound in the checkpoint; None for a scheme without fixed bounds.
        snr_db: signal-to-noise ratio of its values at the first bounds, dB; None where not measured.
        sketch: the values that it sees, in the unit of the bounds; None where not measured.
    """

    slot: str
    bits: int
    ranges: int
    before: Bounds | None
    after: Bounds | None
    snr_db: float | None
    sketch: Sketch | None


@dataclass(frozen=True)
class SiteRow:
    """One site.

    Attributes:
        name: as everywhere in fxptq.
        kind: linear, conv2d, ...
        role: symmetric, one_sided or constant, with the edge of the network on which it stands.
        share: its share of the network's multiplications, 0..1.
        bits: of the weight and of the activation; None for a site in float.
        reason: the reason why it is in float; empty for a quantized site.
        operands: the operands with a quantizer.
        sensitivity: RMS error of the network's output that the errors of its operands alone lead to, in levels of
            0..255; None where no pass measured it.
        other_bits: its bits in the first network of a comparison; None where there is none.
    """

    name: str
    kind: str
    role: str
    share: float
    bits: tuple[int, int] | None
    reason: str
    operands: tuple[OperandRow, ...]
    sensitivity: float | None = None
    other_bits: str | None = None

    @property
    def snr_db(self) -> float | None:
        """The smallest signal-to-noise ratio of its operands, dB."""
        return min((o.snr_db for o in self.operands if o.snr_db is not None), default=None)


@dataclass(frozen=True)
class Step:
    """One pass: its name, its duration and its notes."""

    name: str
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """A figure over the course of a pass.

    Attributes:
        title: what it is.
        steps: name of the unit of the x axis.
        values: the figure, from the first to the last.
    """

    title: str
    steps: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Content:
    """All that a page shows.

    Attributes:
        title: of the page.
        intro: sentences on the origin of the network.
        first: name of the network to compare with.
        second: name of the network that the page is about.
        stages: scores by the name of the stage; the stages `first` and `second` are among them.
        keys: the names of the stages that `first` and `second` stand for.
        sizes: bytes by part.
        total: bytes of the checkpoint.
        compared_bytes: bytes of the first network.
        contrast: pictures, colours and ranges.
        sites: every site in the order of execution.
        layout: the drawing of the network.
        steps: the passes.
        curves: loss curves.
        seconds: by stage of the run.
        made_by: command, machine and versions, by name.
        artefacts: figures of the quality gate, by name; see `fxptq.passes.gate`.
        warnings: what the quality gate warns of.
    """

    title: str
    intro: tuple[str, ...]
    first: str
    second: str
    stages: Mapping[str, list[SetScore]]
    keys: tuple[str, str]
    sizes: Mapping[str, int]
    total: int
    compared_bytes: int
    contrast: Contrast
    sites: tuple[SiteRow, ...]
    layout: Layout
    steps: tuple[Step, ...]
    curves: tuple[Curve, ...]
    seconds: Mapping[str, float]
    made_by: Mapping[str, str]
    artefacts: Mapping[str, float]
    warnings: tuple[str, ...]
