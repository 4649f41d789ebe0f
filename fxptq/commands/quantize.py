"""`fxptq quantize`: a network in, a checkpoint out, and what it cost in decibels, bytes and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fxptq.api import QuantizedModel, check_work, quantize_for
from fxptq.bits import Bits, Budget
from fxptq.checkpoint.file import ByteCounts, byte_counts
from fxptq.commands.scores import open_sets, score_sets
from fxptq.commands.source import Source, device_of, example_of, open_network, parse_site
from fxptq.data.sources import SYNTHETIC
from fxptq.errors import InputError
from fxptq.evaluate.restore import NetworkRun
from fxptq.evaluate.score import SetScore
from fxptq.facts import NO_OVERRIDES, Overrides, gather_facts
from fxptq.graph import Program
from fxptq.graph.sites import mean_bits
from fxptq.io.files import check_writable
from fxptq.io.images import list_images
from fxptq.memory import peak_mb
from fxptq.passes.base import get_pass
from fxptq.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the command line asked for; see `fxptq quantize --help`."""

    bits: Bits
    recipe: str | None = None
    factory: str | None = None
    weights: Path | None = None
    calib: str = "synthetic"
    data: tuple[str, ...] = ()
    preset: str = "standard"
    out: Path = Path("fxptq.safetensors")
    device: str = "cpu"
    seed: int = 0
    sites: tuple[str, ...] = ()
    overrides: Overrides = NO_OVERRIDES
    budget: Budget | None = None
    uniform: bool = False


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        source: the network.
        model: quantized.
        scores: by stage (fp, dobi, final), a score for each set.
        fp32_bytes: of the float network's parameters.
        sizes: of the checkpoint's parts.
        seconds: by stage.
        peak_mb: largest memory of the process so far, MB.
        out: the checkpoint.
        inferred: one line on what was found of a network without a recipe; else empty.
    """

    source: Source
    model: QuantizedModel
    scores: dict[str, list[SetScore]]
    fp32_bytes: int
    sizes: ByteCounts
    seconds: dict[str, float]
    peak_mb: float
    out: Path
    inferred: str = ""

    def as_json(self) -> dict[str, Any]:
        """The shape scripts rely on."""
        sets = [score.name for score in self.scores["fp"]]
        return {
            "recipe": self.source.name,
            "bits": {"w": self.model.meta.bits_w, "a": self.model.meta.bits_a},
            "average_bits": dict(zip("wa", mean_bits(self.model.sites), strict=True)),
            "eval": {
                name: {stage: found[index].mean.figures for stage, found in self.scores.items()}
                for index, name in enumerate(sets)
            },
            "bytes": {"fp32": self.fp32_bytes, "checkpoint": self.sizes.total},
            "sites": len(self.model.sites),
            "float_sites": [{"name": site.name, "reason": site.reason} for site in self.model.float_sites],
            "seconds": self.seconds,
            "peak_mb": self.peak_mb,
            "checkpoint": str(self.out),
            "inferred": self.inferred,
            "quality": dict(self.model.quality.figures),
            "warnings": list(self.model.quality.warnings),
        }


def run(options: Options, progress: Progress) -> Outcome:
    """Quantizes, scores and writes.

    Raises:
        FxptqError: as `fxptq.quantize` and the readers of weights, pictures and sets do.
    """
    check_name(options.out)
    check_writable(options.out)
    exceptions = dict(map(parse_site, options.sites))
    seconds: dict[str, float] = {}
    source = open_network(options.recipe, options.factory, options.weights)
    device = device_of(options.device)
    work = check_work(
        source.recipe,
        options.bits,
        preset=options.preset,
        budget=options.budget,
        uniform=options.uniform,
        sites=exceptions,
        seed=options.seed,
    )
    if options.calib != SYNTHETIC:
        list_images(Path(options.calib))
    model = source.model.to(device)
    facts = gather_facts(model, source.recipe, overrides=options.overrides).checked()
    recipe, scale = facts.recipe, facts.recipe.scale
    source = replace(source, recipe=recipe)
    sets = open_sets(options.data, recipe)
    scores = {
        "fp": _timed(
            seconds,
            "evaluate",
            lambda: score_sets(NetworkRun(model, device, scale), sets, recipe, progress, "float"),
        )
    }

    # The scores after the last pass that sets bounds are reported as `dobi`.
    last_bounds = max((i for i, step in enumerate(work.passes) if get_pass(step.name).sets_bounds), default=-1)
    done: list[str] = []

    def after_pass(name: str, student: Program) -> None:
        done.append(name)
        if len(done) - 1 == last_bounds:
            scores["dobi"] = _timed(
                seconds,
                "evaluate",
                lambda: score_sets(NetworkRun(student, device, scale), sets, recipe, progress, "bounds"),
            )

    started, scoring = time.perf_counter(), seconds["evaluate"]
    quantized = quantize_for(
        facts, model, example_of(recipe).to(device), work, options.calib, progress=progress, after_pass=after_pass
    )
    for report in quantized.report:
        seconds[report.name] = seconds.get(report.name, 0.0) + report.seconds
    worked = time.perf_counter() - started - (seconds["evaluate"] - scoring)
    seconds["capture"] = worked - sum(report.seconds for report in quantized.report)
    scores["final"] = _timed(
        seconds,
        "evaluate",
        lambda: score_sets(NetworkRun(quantized, device, scale), sets, recipe, progress, "quantized"),
    )
    quantized.save(options.out)
    parameters = sum(p.numel() for p in model.parameters()) * 4
    parts, peak = byte_counts(options.out), peak_mb()
    return Outcome(source, quantized, scores, parameters, parts, seconds, peak, options.out, facts.inferred)


def check_name(out: Path) -> None:
    """Refuses a name that is not a checkpoint's.

    Raises:
        InputError: it does not end in .safetensors.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: checkpoints are written as .safetensors")


def _timed(seconds: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
    return result
