"""Budgets put to work: the allocation of bits in a list of passes, and the measurements that it needs of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fxptq.bits import Bits, Budget
from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.metadata import Metadata
from fxptq.checkpoint.state import as_stored, to_checkpoint
from fxptq.data.sources import SYNTHETIC
from fxptq.evaluate.restore import NetworkRun, fitted
from fxptq.evaluate.score import evaluate
from fxptq.evaluate.sets import BenchmarkSet, held_out
from fxptq.facts import Facts
from fxptq.graph import Program
from fxptq.passes.allocate import BEHIND
from fxptq.passes.base import Context, QuantizedNetwork
from fxptq.recipe import PassEntry

ALLOCATE = "allocate"
"""The pass that gives each operand its own bits."""

ATTENTION = "attention"
"""The pass that chooses for products of attentions, at their widths, which it need not do twice where these stay."""

CHANNELS = "channels"
"""The pass that chooses maps of channels, for the widths that there are or for widths that will move."""

_NEARLY_UNIFORM = {"raise_only": True, "extra": 0.01}
"""Settings of the allocation that keep the planned bits but where one per cent more bit operations pay most."""

_ROOM = 512
"""Bytes by which the metadata of a checkpoint may grow while passes run."""


def with_budget(passes: tuple[PassEntry, ...], budget: Budget | None, *, uniform: bool) -> tuple[PassEntry, ...]:
    """The passes of a preset with the allocation of bits that a budget needs.

    Args:
        passes: the passes of the preset.
        budget: what to keep; None leaves it to the preset.
        uniform: whether operands keep their planned bits, but for those that cost next to nothing.
    """
    if uniform:
        kept = _with(_once(passes, ATTENTION), CHANNELS, {"widths_move": False})
        return _with(kept, ALLOCATE, _NEARLY_UNIFORM)
    if budget is None:
        return passes
    passes = _with(passes, CHANNELS, {"widths_move": True})
    operands = "weights" if budget.file_bytes is not None else "all"
    limit = {name: value for name, value in vars(budget).items() if value is not None}
    place = next((i for i, step in enumerate(passes) if step.name == ALLOCATE), None)
    if place is not None:
        own = {name: value for name, value in passes[place].settings.items() if name not in _NEARLY_UNIFORM}
        rest = passes[place + 1 :]
    else:
        place = next((i for i, step in enumerate(passes) if step.name in BEHIND), len(passes))
        own, rest = {}, passes[place:]
    return (*passes[:place], _entry({**own, "operands": operands, **limit}), *rest)


def _with(passes: tuple[PassEntry, ...], name: str, settings: Mapping[str, Any]) -> tuple[PassEntry, ...]:
    """The passes, those of this name with these settings over their own."""
    return tuple(
        PassEntry.model_validate({"name": name, **step.settings, **settings}) if step.name == name else step
        for step in passes
    )


def _once(passes: tuple[PassEntry, ...], name: str) -> tuple[PassEntry, ...]:
    """The passes without those that repeat an earlier one of this name."""
    first = next((i for i, step in enumerate(passes) if step.name == name), len(passes))
    return tuple(step for i, step in enumerate(passes) if step.name != name or i == first)


def _entry(settings: Mapping[str, Any]) -> PassEntry:
    """The allocation with these settings."""
    return PassEntry.model_validate({"name": ALLOCATE, **settings})


def widths_asked(student: Program, bits: Bits, patterns: Collection[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Finds the quantizers whose width was chosen by the name of their site, and the others that have the asked width.

    Args:
        student: the network, as planned.
        bits: the widths asked for.
        patterns: globs of the names of sites whose widths were chosen.

    Returns:
        The keys of both kinds, as `Context.fixed` and `Context.nominal`.
    """
    fixed = frozenset(
        operand.quantizer
        for site in student.sites
        if any(fnmatchcase(site.name, pattern) for pattern in patterns)
        for operand in site.operands
    )
    asked = frozenset(
        key
        for key, quantizer in student.quantizers.items()
        if quantizer.bits == (bits.a if student.weight_of(key) is None else bits.w)
    )
    return fixed, asked - fixed


def overhead(student: Program, meta: Metadata, dtype: torch.dtype) -> int:
    """Counts the most bytes that a checkpoint takes beside its codes, whichever biases later passes change."""
    biases = sum(bias.numel() for key in student.quantizers if (bias := student.bias_of(key)) is not None)
    with as_stored(student):
        return checkpoints.overhead(to_checkpoint(student, meta, dtype)) + 4 * biases + _ROOM


def drop_of(facts: Facts, context: Context, calib: object) -> Callable[[], float] | None:
    """Makes the measurement of the student's loss in dB on pictures that are not used for calibration.

    Args:
        facts: the facts about the network.
        context: the networks, and the calibration inputs.
        calib: the source of the calibration inputs; a folder gives further pictures, any other source generated ones.

    Returns:
        None for a network that takes several inputs, or no pictures.
    """
    recipe = facts.recipe
    if isinstance(context.images[0], tuple) or recipe.input.channels != context.images[0].shape[1]:
        return None
    source = calib if isinstance(calib, str | Path) else SYNTHETIC

    @lru_cache(1)
    def pictures() -> BenchmarkSet:
        return held_out(
            source,
            recipe.task,
            channels=recipe.input.channels,
            start=len(context.images),
            sizes=facts.sizes,
            seed=context.seed,
        )

    def psnr(network: QuantizedNetwork) -> float:
        run = fitted(NetworkRun(network, context.device, recipe.scale), recipe.pictures)
        score = evaluate(run, pictures(), value_range=recipe.input.range)
        return score.mean.figures[score.reported[0]]

    teacher = lru_cache(1)(lambda: psnr(context.teacher))
    return lambda: teacher() - psnr(context.student)
