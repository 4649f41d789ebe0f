"""`fxptq quantize`: a network in, a checkpoint out, and what it cost in decibels, bytes and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fxptq.bits import Bits, Budget
from fxptq.checkpoint.file import ByteCounts, byte_counts
from fxptq.commands.scores import open_sets, score_sets
from fxptq.commands.source import Source, device_of, example_of, open_network, parse_site
from fxptq.data.sources import SYNTHETIC, check_calibration
from fxptq.engine import check_work, quantize_for
from fxptq.errors import InputError
from fxptq.evaluate.contrast import NOTHING_SEEN, Contrast, Watch, joined_contrast
from fxptq.evaluate.restore import NetworkRun
from fxptq.evaluate.score import SetScore, from_json, to_json
from fxptq.facts import NO_OVERRIDES, Overrides, gather_facts
from fxptq.graph import Program
from fxptq.graph.sites import mean_bits
from fxptq.io.files import check_writable
from fxptq.memory import peak_mb
from fxptq.passes.base import get_pass
from fxptq.progress import Overall
from fxptq.quantized import QuantizedModel
from fxptq.ranks import current
from fxptq.resume import RunFolder
from fxptq.stages import Stage

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the command line asked for; see `fxptq quantize --help`. `contrast`: whether pictures are kept to show."""

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
    zero_on_grid: bool = False
    contrast: bool = True
    resume: Path | None = None
    memory: int | None = None


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
        opened_with: the options that commands need to open the checkpoint.
        contrast: the pictures that were scored, in float and quantized, for the report.
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
    opened_with: tuple[str, ...] = ()
    contrast: Contrast = NOTHING_SEEN

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


def run(options: Options, progress: Overall) -> Outcome:
    """Quantizes, scores and writes; several processes share the pictures to score, and the first one writes.

    Raises:
        FxptqError: as `fxptq.quantize` and the readers of weights, pictures and sets do.
    """
    with ExitStack() as shown:
        return _run(options, progress, shown)


def _run(options: Options, progress: Overall, shown: ExitStack) -> Outcome:
    ranks = current()
    check_name(options.out)
    if ranks.first:
        check_writable(options.out)
    exceptions = dict(map(parse_site, options.sites))
    seconds: dict[str, float] = {}
    source = open_network(options.recipe, options.factory, options.weights)
    if options.zero_on_grid:
        source = replace(source, recipe=source.recipe.with_zero_on_grid())
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
        check_calibration(Path(options.calib))
    model = source.model.to(device)
    facts = gather_facts(model, source.recipe, overrides=options.overrides).checked()
    recipe, scale = facts.recipe, facts.recipe.scale
    source = replace(source, recipe=recipe)
    sets = open_sets(options.data, recipe)
    # The scores after the last pass that sets bounds are reported as `dobi`.
    last_bounds = max((i for i, step in enumerate(work.passes) if get_pass(step.name).sets_bounds), default=-1)
    names = [step.name for step in work.passes]
    next_stage = shown.enter_context(progress.run(f"quantize {source.name}", stages_of(names, last_bounds)))
    folder = None
    if options.resume is not None:
        named = ", ".join(f"{one.name} ({len(one)})" for one in sets)
        folder = RunFolder(options.resume, ranks, {"benchmark sets": named})
    watch = Watch(recipe.task, recipe.input.range) if options.contrast else None
    scores = {
        "fp": _timed(
            seconds,
            "evaluate",
            lambda: score_sets(
                NetworkRun(model, device, scale), sets, recipe, progress, "float", watch.first if watch else None, ranks
            ),
        )
    }

    next_stage()
    done: list[str] = []

    def after_pass(name: str, student: Program) -> None:
        done.append(name)
        next_stage()
        if len(done) - 1 == last_bounds and len(done) < len(names):  # else the final scores are those of the bounds

            def score() -> list[SetScore]:
                return score_sets(NetworkRun(student, device, scale), sets, recipe, progress, "bounds", ranks=ranks)

            scores["dobi"] = _timed(seconds, "evaluate", lambda: _noted(folder, score))
            next_stage()

    started, scoring = time.perf_counter(), seconds["evaluate"]
    quantized = quantize_for(
        facts,
        model,
        example_of(recipe).to(device),
        work,
        options.calib,
        progress=progress,
        after_pass=after_pass,
        folder=folder,
        memory=options.memory,
    )
    for report in quantized.report:
        seconds[report.name] = seconds.get(report.name, 0.0) + report.seconds
    worked = time.perf_counter() - started - (seconds["evaluate"] - scoring)
    seconds["capture"] = worked - sum(report.seconds for report in quantized.report)
    scores["final"] = _timed(
        seconds,
        "evaluate",
        lambda: score_sets(
            NetworkRun(quantized, device, scale),
            sets,
            recipe,
            progress,
            "quantized",
            watch.second if watch else None,
            ranks,
        ),
    )
    if last_bounds == len(names) - 1:
        scores = {"fp": scores["fp"], "dobi": scores["final"], "final": scores["final"]}
    next_stage()
    parameters = sum(p.numel() for p in model.parameters()) * 4
    parts, peak = _written(quantized, options.out), peak_mb()
    contrast = joined_contrast(ranks.gather(watch.result()), scores["fp"]) if watch else NOTHING_SEEN
    opened_with = () if quantized.meta.recipe else ("--model", opener(options))
    return Outcome(
        source, quantized, scores, parameters, parts, seconds, peak, options.out, facts.inferred, opened_with, contrast
    )


def _noted(folder: RunFolder | None, score: Callable[[], list[SetScore]]) -> list[SetScore]:
    """Scores that are measured once in a run, however often it is killed: later, the network is another one."""
    if folder is None:
        return score()
    return [from_json(one) for one in folder.noted("scores of the bounds", lambda: [to_json(one) for one in score()])]


def opener(options: Options) -> str:
    """The value of --model that opens the checkpoint of a network without a bundled recipe."""
    own = options.recipe if options.recipe and options.recipe.endswith(".toml") else None
    return options.factory or own or str(options.weights or "package.module:factory")


_WEIGHTS = {"dqc": 20.0, "gptq": 4.0, "channels": 4.0, "attention": 4.0, "refit": 4.0}
"""How long passes take beside a score or a pass that sets bounds: for the first estimate of the time left."""


def stages_of(passes: Sequence[str], last_bounds: int) -> list[Stage]:
    """The stages of a run, for its bar.

    Args:
        passes: their names, in order.
        last_bounds: the position of the last pass that sets bounds.
    """
    stages = [Stage("scores in float", 0.5)]
    for index, name in enumerate(passes):
        weight = _WEIGHTS.get(name, 1.0)
        stages.append(Stage(name, weight) if index else Stage(f"capture, {name}", weight + 0.5))
        if index == last_bounds and index < len(passes) - 1:
            stages.append(Stage("scores with bounds"))
    return [*stages, Stage("scores quantized")]


def _written(quantized: QuantizedModel, out: Path) -> ByteCounts:
    """Writes a checkpoint, in the first of the processes; its sizes."""
    ranks = current()

    def write() -> ByteCounts | None:
        if not ranks.first:
            return None
        quantized.save(out)
        return byte_counts(out)

    sizes = ranks.from_first(ranks.together(write))
    assert sizes is not None  # noqa: S101  # the first process has written
    return sizes


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
