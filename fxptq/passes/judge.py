"""Judges changes of the student by the error of its output on held-out inputs, and takes the bad ones back.

The best choice for one layer is not always good for the network, because errors of residual branches add up. So a pass
that chooses by layers asks a `Judge` after each stage of its changes. Held-out inputs are calibration inputs that no
such pass chooses by; the same seed holds out the same inputs in every pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context, QuantizedNetwork
from fxptq.passes.crops import crops_in_turn, split

State = dict[str, dict[str, Tensor]]
"""The tensors of quantizers (`Quantizer.stored`), by key."""

T = TypeVar("T")

_HALVINGS = 3
"""How often a rejected stage is halved."""

_HARDLY = 0.001
"""A change of the error by less than this part of it is no verdict: the layers decide, for which the change is better.

Where few bits leave little of a picture, the output hardly shows changes that count once weights are rounded.
"""

_PATCH, _CROPS = 48, 8


@dataclass(frozen=True)
class JudgedSettings:
    """The settings of every pass that asks a `Judge`.

    Attributes:
        holdout: share of the calibration inputs to judge the network by, 0..1.
        judge_patch: side of the crops of these inputs that the network runs on, in pixels, where they have room for it.
            Judging takes most of the time of these passes.
        judge_crops: number of these crops. Every held-out input gives one at least, and none gives two before all have
            given one; few pictures judge badly, because errors differ twentyfold from one to the next.
    """

    holdout: float = 0.25
    judge_patch: int = _PATCH
    judge_crops: int = _CROPS

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout lies between 0 and 1, unlike {self.holdout}")
        for name in ("judge_patch", "judge_crops"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class StagedSettings(JudgedSettings):
    """The settings of a pass whose choices are judged stage by stage; see `JudgedSettings`.

    Attributes:
        k: number of candidates for each bound.
        stages: number of parts of the network that are judged one after the other.
    """

    k: int = 50
    stages: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.k, self.stages) < 1:
            raise InputError("k and stages must be at least 1")


@dataclass(frozen=True)
class Snapshot:
    """The state of some quantizers, and of the weights and biases behind them.

    Attributes:
        student: the network.
        stored: the tensors of each quantizer, by key.
        weights: weights by the key of their quantizer.
        biases: biases by the key of their weight's quantizer.
    """

    student: QuantizedNetwork
    stored: State
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]

    @classmethod
    def of(cls, student: QuantizedNetwork, keys: Iterable[str]) -> Snapshot:
        """Copies the state of the quantizers of these keys; trained values must be absorbed."""
        keys = tuple(keys)
        stored = {key: _copies(student.quantizers[key].stored()) for key in keys}
        weights = {key: weight for key in keys if (weight := student.weight_of(key)) is not None}
        biases = {key: bias for key in keys if (bias := student.bias_of(key)) is not None}
        return cls(student, stored, _copies(weights), _copies(biases))

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the network this state again."""
        for key, tensors in self.stored.items():
            self.student.quantizers[key].restore(tensors)
        for key, weight in self.weights.items():
            self.student.set_weight(key, weight)
        for key, bias in self.biases.items():
            self.student.set_bias(key, bias)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class Judge:
    """The error of the student's output on held-out inputs.

    Args:
        ctx: the networks and the calibration inputs.
        fraction: share of the inputs to hold out, 0..1; see `crops.split`.
        patch: side of their crops in pixels; see `JudgedSettings`.
        crops: number of these crops.

    Attributes:
        inputs: the inputs to choose by, which the error does not see (unless there is only one input).

    Raises:
        InputError: there are no calibration inputs.
    """

    def __init__(self, ctx: Context, fraction: float, patch: int = _PATCH, crops: int = _CROPS) -> None:
        if not ctx.images:
            raise InputError("choosing by the output needs at least one calibration image")
        self._ctx = ctx
        ctx.install_kernels()
        inputs, holdout = split(ctx.images, fraction, torch.Generator().manual_seed(ctx.seed))
        self.inputs: list[Inputs] = inputs
        which = fraction, patch, crops
        if which not in ctx.references:
            shown = crops_in_turn(ctx.sizes, holdout, patch, crops, ctx.seed)
            held = [ctx.placed(batch) for batch in batches(ctx, ctx.ranks.share(shown))]
            with torch.no_grad():
                ctx.references[which] = [(batch, ctx.picture.pick(ctx.teacher(*batch))) for batch in held]
        self._held = ctx.references[which]
        self._error: float | None = None

    @property
    def error(self) -> float:
        """Mean squared error of the output in the last state that was kept; at first, in the present state."""
        if self._error is None:
            self._error = self.measure()
        return self._error

    def keeps(self, keys: Iterable[str], change: Callable[[], None], *, slack: float = 0.0) -> bool:
        """Makes a change and keeps it if the error becomes smaller; otherwise takes it back.

        Args:
            keys: the quantizers that the change concerns, with their weights and biases.
            change: changes the student.
            slack: a part of the error by which it may become larger all the same.
        """
        start, before = self.error, Snapshot.of(self._ctx.student, keys)
        change()
        error = self.measure()
        if error < start * (1 + slack):  # a NaN is no improvement
            self._error = error
            return True
        before.restore()
        return False

    def keeps_states(self, states: Sequence[State], stages: int) -> int:
        """Gives quantizers new tensors, stage by stage, and takes back the stages that make the error larger.

        The halves of a rejected stage are tried one after the other, and their halves likewise, so that one bad change
        does not cost the good ones around it. Where a new map is kept, the statistics of the values behind the former
        one are forgotten.

        Args:
            states: changes that belong together, in the order of execution.
            stages: the number of stages, of nearly equal numbers of changes.

        Returns:
            The number of changes that were kept.
        """
        return sum(self._keeps_most(stage, _HALVINGS) for stage in in_parts(states, stages))

    def _keeps_most(self, states: Sequence[State], halvings: int) -> int:
        """The number of changes that were kept of a stage."""
        done = self._keeps_all(states)
        if done or len(states) == 1 or halvings == 0:
            return done
        return sum(self._keeps_most(half, halvings - 1) for half in in_parts(states, 2))

    def _keeps_all(self, states: Sequence[State]) -> int:
        """The number of changes: all or none."""
        merged = {key: tensors for state in states for key, tensors in state.items()}

        def change() -> None:
            for key, tensors in merged.items():
                self._ctx.student.quantizers[key].restore(tensors)

        if not self.keeps(merged, change, slack=_HARDLY):
            return 0
        for key in merged:
            self._ctx.statistics.pop(key, None)
        return len(states)

    @classmethod
    def of(cls, ctx: Context, settings: JudgedSettings) -> Judge:
        """The judge of a pass with these settings."""
        return cls(ctx, settings.holdout, settings.judge_patch, settings.judge_crops)

    @torch.no_grad()
    def measure(self) -> float:
        """The mean squared error of the output in the present state, whether it will be kept or not."""
        total, count = 0.0, 0.0
        for batch, reference in self._held:
            picture = self._ctx.picture.pick(self._ctx.student(*batch))
            total += float((picture - reference).double().square().sum())
            count += reference.numel()
        total, count = self._ctx.ranks.totals(total, count)
        return total / count if count else math.nan


def in_parts(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    """Items in their order, in up to `count` parts of nearly one length."""
    count = min(count, len(items))
    ends = [round(i * len(items) / count) for i in range(count + 1)] if count else []
    for start, end in pairwise(ends):
        yield items[start:end]


def batches(ctx: Context, inputs: Sequence[Inputs]) -> list[Inputs]:
    """Single inputs as one batch if the network takes batches and all inputs have the same shapes."""
    if not inputs:
        return []
    tuples = [item if isinstance(item, tuple) else (item,) for item in inputs]
    shapes = {tuple(tuple(x.shape) for x in item) for item in tuples}
    if not ctx.batches or len(shapes) > 1:
        return list(inputs)
    return [tuple(torch.cat(parts) for parts in zip(*tuples, strict=True))]
