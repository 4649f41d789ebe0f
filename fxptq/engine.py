"""One quantization from its settings to the quantized network: capture, calibration, passes, the gate of quality."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fxptq.bits import FLOAT, Bits, BitsLike, BudgetLike, as_bits, as_budget
from fxptq.budget import drop_of, overhead, widths_asked, with_budget
from fxptq.calibration import inputs_for, inputs_of_another_origin
from fxptq.checkpoint.metadata import Metadata
from fxptq.checkpoint.state import make_storable, round_floats
from fxptq.data.sources import Inputs
from fxptq.errors import CaptureError, InputError
from fxptq.facts import Facts
from fxptq.graph import Program
from fxptq.graph.copies import independent_copy
from fxptq.graph.finite import damaged_tensor
from fxptq.graph.outputs import trained_output
from fxptq.graph.parametrized import make_weights_plain
from fxptq.graph.precision import OTHERS, converted_inputs, to_float32
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.graph.tensors import lazy_tensors
from fxptq.graph.wrappers import network_of
from fxptq.origin import dtype_name, inputs_digest, metadata_of, weights_digest
from fxptq.passes.base import Context, PassReport, build_pass, run_passes
from fxptq.passes.gate import check_quality
from fxptq.planning import plan_of
from fxptq.progress import Progress, Silent
from fxptq.quantized import QuantizedModel
from fxptq.ranks import Ranks, current
from fxptq.recipe import PassEntry, Recipe
from fxptq.resume import RunFolder, digest

_log = logging.getLogger("fxptq")

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Work:
    """The checked settings of a quantization.

    Attributes:
        bits: bit widths by default.
        preset: the name of a preset of the recipe.
        sites: exceptions by glob pattern of site names.
        seed: seed of everything random.
        passes: the passes to run.
    """

    bits: Bits
    preset: str
    sites: Mapping[str, Bits | Literal["float"]]
    seed: int
    passes: tuple[PassEntry, ...]


def check_work(
    recipe: Recipe,
    bits: BitsLike,
    *,
    preset: str = "standard",
    budget: BudgetLike | None = None,
    uniform: bool = False,
    sites: Mapping[str, BitsLike] | None = None,
    seed: int = 0,
) -> Work:
    """Checks the settings that do not depend on the network; for the arguments see `quantize`.

    Raises:
        InputError: bits, a preset, its passes or a seed are not valid.
    """
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed is {seed}; expected a number from 0 to 2**63 - 1")
    asked = None if budget is None else as_budget(budget)
    if uniform and asked is not None:
        raise InputError("a budget gives each operand its own bits, and uniform forbids that: leave one of them out")
    chosen = as_bits(bits)
    if asked is not None and asked.average is not None:
        chosen = Bits(*[math.floor(asked.average + 0.5)] * 2)
    passes = with_budget(recipe.preset(preset).passes, asked, uniform=uniform)
    for step in passes:
        build_pass(step.name, step.settings)
    exceptions = {pattern: FLOAT if each == FLOAT else as_bits(each) for pattern, each in (sites or {}).items()}
    return Work(chosen, preset, exceptions, seed, passes)


def quantize_for(
    facts: Facts,
    model: nn.Module,
    example: Inputs,
    work: Work,
    calib: str | Path | Iterable[Inputs] = "synthetic",
    *,
    progress: Progress | None = None,
    after_pass: Callable[[str, Program], None] | None = None,
    folder: RunFolder | None = None,
    memory: int | None = None,
) -> QuantizedModel:
    """Quantizes a network whose facts are known.

    Args:
        facts: the facts about the network, from `fxptq.facts.gather_facts`.
        model: the network; it is copied and stays unchanged.
        example: see `quantize`.
        work: the settings, from `check_work`.
        calib: see `quantize`.
        progress: see `quantize`.
        after_pass: see `quantize`.
        folder: keeps the state of the run; None for no state.
        memory: see `quantize`; in bytes.

    Raises:
        FxptqError: as `quantize`.
    """
    settings, bits, seed = facts.recipe, work.bits, work.seed
    chosen = settings.preset(work.preset)
    dtype = _DTYPES[chosen.quantize.float_dtype]
    ranks = current()
    progress = progress if progress is not None and ranks.first else Silent()
    model = network_of(model)
    lazy = next(lazy_tensors(model), None)
    if lazy is not None:
        raise InputError(f"{lazy} does not exist yet: its lazy layer was never run; load weights or call the network")
    own_dtype = (example[0] if isinstance(example, tuple) else example).dtype
    example = converted_inputs(example)
    inputs = example if isinstance(example, tuple) else (example,)
    images, described = inputs_for(calib, facts, inputs, chosen.images, seed)
    images = [converted_inputs(image) for image in images]
    _check_alike(ranks, (work, chosen), images, model)
    with progress.task("capture", 2) as advance:
        plain = make_weights_plain(independent_copy(model))
        if own_dtype in OTHERS:
            _log.warning(
                "a network in %s is quantized in float32; it still takes and gives %s", *[dtype_name(own_dtype)] * 2
            )
            to_float32(plain, own_dtype)
        rounded = independent_copy(plain)
        round_floats(rounded, dtype)
        try:
            student = Program(rounded, inputs, plan_of(chosen.quantize, bits, work.sites))
        except CaptureError as error:
            if own_dtype not in OTHERS:
                raise
            raise CaptureError(
                f"a network in {dtype_name(own_dtype)} is quantized in float32, which this one refuses: {error}. "
                "Let it take float32, and pass model.float() and example.float()"
            ) from error
        damage = damaged_tensor(student)
        if damage:
            raise InputError(f"{damage}: its weights are damaged or were never set; load them again")
        advance()
        teacher = Program(plain, inputs, twin=student)
        advance()
    with torch.no_grad(), OwnRandomNumbers(seed):
        picture = trained_output(inputs[0], teacher(*inputs), settings.scale)
    context = Context(
        student=student,
        teacher=teacher,
        images=images,
        elsewhere=inputs_of_another_origin(calib, facts, inputs, seed),
        sizes=facts.sizes,
        batches=facts.batches,
        picture=picture,
        seed=seed,
        progress=progress,
        ranks=ranks,
        install_kernels=install_kernels,
        memory=memory,
    )
    patterns = (*work.sites, *chosen.quantize.sites)
    context.fixed, context.nominal = widths_asked(student, bits, patterns)

    def metadata() -> Metadata:
        return metadata_of(
            student, model, example, bits, settings, work.passes, dtype=dtype, seed=seed, calibration=described
        )

    context.overhead = lambda: overhead(student, metadata(), dtype)
    context.drop = drop_of(facts, context, calib)
    if folder is not None:
        folder.open(_identity(context, student, work, facts, described, inputs, model))
    reports = _run(work.passes, context, student, folder, after_pass or (lambda _name, _student: None))
    make_storable(student, dtype)
    with OwnRandomNumbers(seed):
        quality = check_quality(context, settings.input.range)
    return QuantizedModel(student, metadata(), reports, quality)


def _check_alike(ranks: Ranks, settings: object, images: list[Inputs], model: nn.Module) -> None:
    """Checks that all processes were given the same."""
    if ranks.world > 1:
        ranks.check_same("bits, settings or a seed", settings)
        ranks.check_same("calibration inputs", inputs_digest(images))
        ranks.check_same("weights", weights_digest(model))


def _run(
    passes: tuple[PassEntry, ...],
    context: Context,
    student: Program,
    folder: RunFolder | None,
    after_pass: Callable[[str, Program], None],
) -> tuple[PassReport, ...]:
    """Runs the passes that the folder of the run has not behind it, and keeps the state after each of them there."""
    names = [step.name for step in passes]
    reports: list[PassReport] = []
    start = 0
    if folder is not None:
        earlier, start = folder.go_on(context, student)
        reports += earlier
        context.interim = folder.interim(start)
    for name in names[:start]:
        after_pass(name, student)
    finished = start

    def after(report: PassReport, done: int) -> None:
        nonlocal finished
        reports.append(report)
        if folder is not None:
            folder.save(context, student, reports, done, names[done:])
            context.interim = folder.interim(done)
        if done > finished:
            finished = done
            after_pass(report.name, student)

    run_passes([(step.name, step.settings) for step in passes], context, start=start, after=after)
    return tuple(reports)


def _identity(
    context: Context,
    student: Program,
    work: Work,
    facts: Facts,
    described: str,
    example: tuple[Tensor, ...],
    model: nn.Module,
) -> dict[str, str]:
    """All that decides the result of a run, by its name for people; see `RunFolder.open`."""
    graph = re.sub("0x[0-9a-f]+", "", str(student.variants[0].capture.graph))  # addresses differ between processes
    return {
        "seed": str(work.seed),
        "bits": f"W{work.bits.w}A{work.bits.a}",
        "preset": work.preset,
        "passes": digest([(step.name, sorted(step.settings.items())) for step in work.passes]),
        "settings": digest((facts.recipe.model_dump_json(), sorted(work.sites.items()), facts.sizes, facts.batches)),
        "calibration": described,
        "calibration inputs": inputs_digest([*context.images, *context.elsewhere]),
        "example": inputs_digest([example]),
        "weights": weights_digest(model),
        "network": digest(graph),
        "device": context.device.type,
    }


def install_kernels() -> None:
    """Installs the compiled kernels of the CPU, also behind the operators that quantizers call."""
    from fxptq.kernels.backend import get_backend  # noqa: PLC0415  # building kernels is only for those who ask

    get_backend("cpu").install()
