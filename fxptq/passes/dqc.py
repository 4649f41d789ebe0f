"""DQC: the float network teaches the quantized one and bounds learn, stage 2 of 2DQuant (arXiv 2406.06649).

Three points that the paper leaves open are explicit here: the scale of the feature loss, the unit of the learning rate
(each quantizer's initial step, so that one rate fits all), and the choice of the final state. It is the state of least
loss on held-out crops of calibration images, never on a benchmark. The initial state is a candidate, so the pass never
raises it. Beyond the paper, the loss may be the squared error, and weights may learn to change their codes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, QuantizedNetwork, register
from fxptq.passes.crops import training_crops
from fxptq.passes.dqc_settings import DqcSettings
from fxptq.passes.offsets import learned_offsets, movable_weights
from fxptq.passes.pinned import pinned_codes
from fxptq.passes.training import Training
from fxptq.passes.vector import as_vector
from fxptq.passes.vectors import learned_vectors
from fxptq.passes.work import work_of
from fxptq.quant.quantizer import Quantizer

_MOST_TIMES = 16.0
"""So many times the steps is a training lengthened at most: what keeps its codes has then nothing left to learn."""


@register("dqc")
class Dqc(Pass):
    """Trains quantizers that are on against the float network's output and features."""

    Settings = DqcSettings
    needs: ClassVar[frozenset[str]] = frozenset()
    settings: DqcSettings

    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Raises:
            InputError: if no bounds are set, or there are no images.
            CalibrationError: if the loss or a bound is not finite. The quantizers then have the best state so far.
        """
        quantizers = ctx.student.quantizers.values()
        if all(quantizer.mode == "on" and not quantizer.trainables() for quantizer in quantizers):
            return PassReport(notes=("no quantizer has a range to train",))
        if not any(quantizer.mode == "on" and quantizer.trainables() for quantizer in quantizers):
            raise InputError("dqc trains bounds that are set: run a pass such as `dobi` before it")
        if not ctx.images:
            raise InputError("dqc needs calibration images")
        with self.training(ctx, self.learners(ctx.student)) as training:
            return training.run()

    @contextmanager
    def training(self, ctx: Context, learners: dict[str, Quantizer]) -> Iterator[Training]:
        """The training of a run; within, the learners' parameters are parts of vectors, afterwards their bounds.

        Args:
            ctx: the networks and inputs.
            learners: the quantizers that learn, by key.
        """
        ctx.install_kernels()
        settings, student = self._fitted(ctx), ctx.student
        with (
            _codes(settings, student, ctx.teacher) as offsets,
            _only_learning(student, learners),
            learned_vectors(student.vectors() if settings.vector_lr else {}) as units,
            _rates(_rate_of_each(settings, student, learners, offsets, units)) as rates,
        ):
            yield Training(settings, ctx, learners, rates)

    def _fitted(self, ctx: Context) -> DqcSettings:
        """The settings with as many steps as the work allows."""
        settings = self.settings
        if not settings.work:
            return settings
        batch = training_crops(
            ctx, crops=settings.batch, batch=settings.batch, patch=settings.patch, fraction=settings.holdout
        )[0]
        times = min(max(1.0, settings.work / (settings.steps * work_of(ctx, batch))), _MOST_TIMES)
        more = {name: round(times * getattr(settings, name)) for name in ("steps", "crops", "eval_every")}
        return replace(settings, **more)

    def learners(self, student: QuantizedNetwork) -> dict[str, Quantizer]:
        """The quantizers of a network that learn, by key."""
        return {
            key: quantizer
            for key, quantizer in student.quantizers.items()
            if quantizer.mode == "on" and quantizer.trainables() and _rate_of_bounds(self.settings, student, key)
        }


def _rate_of_bounds(settings: DqcSettings, student: QuantizedNetwork, key: str) -> float:
    """The learning rate of the bounds of a quantizer, in units of its step."""
    if settings.weight_lr is None or student.weight_of(key) is None:
        return settings.lr
    return settings.weight_lr


def _rate_of_each(
    settings: DqcSettings,
    student: QuantizedNetwork,
    learners: dict[str, Quantizer],
    offsets: Sequence[nn.Parameter],
    units: Mapping[nn.Parameter, float],
) -> Iterator[tuple[nn.Parameter, float]]:
    """All parameters that learn, with their peak rates."""
    for key, quantizer in learners.items():
        for trainable in quantizer.trainables():
            yield trainable.parameter, _rate_of_bounds(settings, student, key) / trainable.steps
    for offset in offsets:
        yield offset, settings.rounding_lr
    for vector, unit in units.items():
        yield vector, settings.vector_lr * unit


@contextmanager
def _codes(
    settings: DqcSettings, student: QuantizedNetwork, teacher: QuantizedNetwork
) -> Iterator[Sequence[nn.Parameter]]:
    """Within, the codes of weights stay or learn, as the settings say; yields the offsets that learn."""
    if settings.rounding_lr:
        with learned_offsets(student, teacher, movable_weights(student)) as offsets:
            yield list(offsets.values())
    else:
        with pinned_codes(student, movable_weights(student) if settings.keep_codes else {}):
            yield []


@contextmanager
def _rates(rate_of_each: Iterable[tuple[nn.Parameter, float]]) -> Iterator[dict[nn.Parameter, float]]:
    """Within, all parameters that learn at one rate are one vector; yields the peak rate of each vector."""
    groups: dict[tuple[float, torch.dtype], list[nn.Parameter]] = {}
    for parameter, rate in rate_of_each:
        groups.setdefault((rate, parameter.dtype), []).append(parameter)
    with ExitStack() as stack:
        yield {stack.enter_context(as_vector(parameters)): rate for (rate, _), parameters in groups.items()}


@contextmanager
def _only_learning(student: QuantizedNetwork, learners: dict[str, Quantizer]) -> Iterator[None]:
    """Within, only the learners' parameters get gradients; afterwards the learners absorb the trained values."""
    parameters = [(key, p) for key, quantizer in student.quantizers.items() for p in quantizer.parameters()]
    before = [p.requires_grad for _, p in parameters]
    try:
        for key, parameter in parameters:
            parameter.requires_grad_(key in learners)
        yield
    finally:
        for (_, parameter), required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = None
        for quantizer in learners.values():
            quantizer.absorb()
