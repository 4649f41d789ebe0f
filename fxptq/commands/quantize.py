"""`fxptq quantize`: a network in, a checkpoint out, and what it cost in decibels, bytes and seconds."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fxptq.api import QuantizedModel, quantize
from fxptq.checkpoint.file import Sizes, sizes
from fxptq.commands.scores import on_device, open_sets, score_sets
from fxptq.commands.source import Source, device_of, example_of, open_network, parse_site
from fxptq.data.sources import SYNTHETIC
from fxptq.errors import InputError
from fxptq.evaluate.score import SetScore
from fxptq.graph import Bits, Program
from fxptq.io.files import check_writable
from fxptq.io.images import list_images
from fxptq.progress import Progress

T = TypeVar("T")

BOUND_PASSES = frozenset({"minmax", "percentile", "dobi", "dobi2d"})
"""Passes that give first bounds; the scores after the last of them are reported as `dobi`."""


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
    """

    source: Source
    model: QuantizedModel
    scores: dict[str, list[SetScore]]
    fp32_bytes: int
    sizes: Sizes
    seconds: dict[str, float]
    peak_mb: float
    out: Path

    def as_json(self) -> dict[str, Any]:
        """The shape scripts rely on."""
        sets = [score.name for score in self.scores["fp"]]
        return {
            "recipe": self.source.name,
            "bits": {"w": self.model.meta.bits_w, "a": self.model.meta.bits_a},
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
    preset = source.recipe.preset(options.preset)
    if options.calib != SYNTHETIC:
        list_images(Path(options.calib))
    sets = open_sets(options.data, source.recipe)
    model = source.model.to(device)
    scores = {
        "fp": _timed(
            seconds, "evaluate", lambda: score_sets(on_device(model, device), sets, source.recipe, progress, "float")
        )
    }

    last_bounds = max((index for index, step in enumerate(preset.passes) if step.name in BOUND_PASSES), default=-1)
    done: list[str] = []

    def after_pass(name: str, student: Program) -> None:
        done.append(name)
        if len(done) - 1 == last_bounds:
            scores["dobi"] = _timed(
                seconds,
                "evaluate",
                lambda: score_sets(on_device(student, device), sets, source.recipe, progress, "bounds"),
            )

    started, scoring = time.perf_counter(), seconds["evaluate"]
    quantized = quantize(
        model,
        example_of(source.recipe).to(device),
        options.bits,
        options.calib,
        source.recipe,
        preset=options.preset,
        sites=exceptions,
        seed=options.seed,
        progress=progress,
        after_pass=after_pass,
    )
    for report in quantized.report:
        seconds[report.name] = seconds.get(report.name, 0.0) + report.seconds
    worked = time.perf_counter() - started - (seconds["evaluate"] - scoring)
    seconds["capture"] = worked - sum(report.seconds for report in quantized.report)
    scores["final"] = _timed(
        seconds,
        "evaluate",
        lambda: score_sets(on_device(quantized, device), sets, source.recipe, progress, "quantized"),
    )
    quantized.save(options.out)
    parameters = sum(p.numel() for p in model.parameters()) * 4
    return Outcome(source, quantized, scores, parameters, sizes(options.out), seconds, _peak_mb(), options.out)


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


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
