"""DQC: the float network teaches the quantized one and bounds learn, stage 2 of 2DQuant (arXiv 2406.06649).

Three points that the paper leaves open are explicit here: the scale of the feature loss, the unit of the learning rate
(each quantizer's initial step, so that one rate fits all), and the choice of the final state. It is the state of least
loss, or squared error, on held-out crops of calibration images, never on a benchmark. The initial state is a candidate,
so the pass never raises it. Beyond the paper, weights may learn to change their codes too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fxptq.errors import CalibrationError, InputError
from fxptq.io.state_file import State
from fxptq.passes.base import Context, Pass, PassReport, QuantizedNetwork, register
from fxptq.passes.course import Course, resume, state_of
from fxptq.passes.crops import Batches, training_crops
from fxptq.passes.distill import DistillationLoss, FeatureScale, SquaredError
from fxptq.passes.lessons import KeptLessons, fresh_lessons, repeated_lessons
from fxptq.passes.offsets import learned_offsets, movable_weights
from fxptq.passes.pinned import pinned_codes
from fxptq.passes.teaching import Teaching, turns_agree
from fxptq.passes.vector import as_vector
from fxptq.passes.vectors import learned_vectors
from fxptq.passes.work import work_of
from fxptq.quant.quantizer import Quantizer

_RATES = ("lr", "weight_lr", "rounding_lr", "vector_lr")
"""The settings that are learning rates."""

_COUNTS = ("crops", "answers_mb", "warmup", "holdout_patch", "patience")
"""The settings that are whole numbers of which 0 means none."""

_MOST_TIMES = 16.0
"""So many times the steps is a training lengthened at most: what keeps its codes has then nothing left to learn."""


@register("dqc")
class Dqc(Pass):
    """Trains quantizers that are on against the float network's output and features."""

    @dataclass(frozen=True)
    class Settings:
        """Settings; the defaults are the values of the paper, where it gives one.

        Attributes:
            steps: number of steps of the optimizer (Adam).
            batch: crops in a step; one for a network that takes one picture at a time.
            patch: side of a crop in pixels of the input.
            crops: number of fixed crops to train on, again and again, for which the float network answers once; 0 for
                new crops in every step.
            answers_mb: memory for these answers in MB; answers beyond it are computed again, with the same result.
            lr: learning rate of bounds in units of each quantizer's initial step; 0 for none. In units of the width, a
                rate that suits 2 bits would move a bound at 8 bits by many steps.
            backoff: factor for the learning rate. When a held-out evaluation is worse than before training, training
                restarts from the best state with the rate multiplied by this. 1 disables it.
            betas: coefficients of Adam.
            schedule: `cosine` lowers the rate to zero over the run, `constant` keeps it.
            warmup: steps over which the rate rises from zero.
            feature_weight: lambda, the factor of the feature loss.
            feature_scale: `relative` or `paper`, see fxptq.passes.distill.feature_loss.
            weight_lr: learning rate of bounds of weights, in the same unit; 0 for none, and None for that of the other
                bounds. A step of the bounds of a weight that keeps its codes moves all of its values together.
            rounding_lr: learning rate of the codes of weights, in units of a code; 0 for none. Each weight starts where
                the float weight lies in the cell of its code, see `fxptq.passes.offsets`; its grid learns through the
                codes. (AdaRound, arXiv 2004.10568, learns codes layer by layer.)
            keep_codes: whether each weight keeps its codes, so that its grid alone learns, through them; for weights
                that were rounded for the output of their layer.
            vector_lr: learning rate of biases and of the scales and shifts of norms, in units of each vector's root
                mean square; 0 for none.
            holdout: share of the images to evaluate on, 0..1.
            holdout_origin: `own` evaluates on a part of the images; `other` evaluates on inputs of another origin where
                the context has them, and trains on all images.
            holdout_crops: number of fixed crops of those images.
            holdout_patch: side of these crops in pixels; 0 for `patch`. Few small crops judge badly.
            judged_by: `loss` evaluates by the loss that is trained on; `error` by the squared error of the picture, as
                passes without training do. A state of less absolute difference may have a larger squared error.
            turns: whether the float network answers each crop by way of another orientation (see
                `fxptq.passes.turns`), as long as these answers are no further from its own than the student is
                (`turns_apart`). Features have no part in it.
            turns_apart: the largest squared distance of both kinds of answers, as a multiple of the student's squared
                error before training, both on held-out crops. A network that was trained on upright pictures alone
                goes beyond it.
            eval_every: steps between two evaluations.
            work: work that the training may take, in multiply-accumulates of a forward run (see `fxptq.passes.work`). A
                network on which `steps` take less gets more steps and crops, and as many evaluations; at most 16 times
                as many. 0 for none of it.
            patience: number of evaluations without progress after which training stops; 0 for never.
            time_limit_s: limit of the training in seconds; the schedule is fitted to it, and the last state is
                evaluated, too. With a limit the result depends on the machine. None for no limit.
        """

        steps: int = 3000
        batch: int = 8
        patch: int = 64
        crops: int = 0
        answers_mb: int = 1000
        lr: float = 0.03
        backoff: float = 0.3
        betas: tuple[float, float] = (0.9, 0.999)
        schedule: Literal["cosine", "constant"] = "cosine"
        warmup: int = 0
        feature_weight: float = 5.0
        feature_scale: FeatureScale = "paper"
        weight_lr: float | None = None
        rounding_lr: float = 0.0
        keep_codes: bool = False
        vector_lr: float = 0.0
        holdout: float = 0.1
        holdout_origin: Literal["own", "other"] = "own"
        holdout_crops: int = 16
        holdout_patch: int = 0
        judged_by: Literal["loss", "error"] = "loss"
        turns: bool = False
        turns_apart: float = 3.0
        eval_every: int = 100
        work: float = 0.0
        patience: int = 0
        time_limit_s: float | None = None

        def __post_init__(self) -> None:
            for name in ("steps", "batch", "patch", "holdout_crops", "eval_every"):
                if getattr(self, name) < 1:
                    raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
            for name in (*_COUNTS, "work", "feature_weight", "turns_apart", *_RATES):
                if (getattr(self, name) or 0) < 0:
                    raise InputError(f"{name} must not be negative, but is {getattr(self, name)}")
            if self.keep_codes and self.rounding_lr:
                raise InputError("keep_codes keeps the codes that rounding_lr would change: give one of the two")
            if self.turns and self.feature_weight:
                raise InputError("turned crops have turned features: turns needs a feature_weight of 0")
            if not any(getattr(self, name) for name in _RATES):
                raise InputError(f"nothing learns: give one of {', '.join(_RATES)} above 0")
            if self.time_limit_s is not None and self.time_limit_s <= 0:
                raise InputError(f"time_limit_s must be above 0, not {self.time_limit_s}")
            if not 0 < self.backoff <= 1:
                raise InputError(f"backoff lies above 0 and is at most 1, unlike {self.backoff}")
            if not (all(0 <= beta < 1 for beta in self.betas) and 0 < self.holdout < 1):
                raise InputError(f"betas and holdout lie between 0 and 1, unlike {self.betas} and {self.holdout}")

    needs: ClassVar[frozenset[str]] = frozenset()
    settings: Settings

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
        movable = movable_weights(student) if settings.rounding_lr or settings.keep_codes else {}
        with (
            pinned_codes(student, movable if settings.keep_codes else {}),
            _only_learning(student, learners),
            learned_offsets(student, ctx.teacher, movable if settings.rounding_lr else {}) as offsets,
            learned_vectors(student.vectors() if settings.vector_lr else {}) as units,
            _rates(_rate_of_each(settings, student, learners, list(offsets.values()), units)) as rates,
        ):
            yield Training(settings, ctx, learners, rates)

    def _fitted(self, ctx: Context) -> Settings:
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


class Training:
    """One training run: its lessons, parameters and optimizer."""

    def __init__(
        self, settings: Dqc.Settings, ctx: Context, learners: dict[str, Quantizer], rates: Mapping[nn.Parameter, float]
    ) -> None:
        self.settings, self.ctx, self.learners = settings, ctx, learners
        self.reached = True  # whether the loss depends on a trained parameter
        loss = DistillationLoss(settings.feature_weight, settings.feature_scale)
        generator = torch.Generator().manual_seed(ctx.seed)
        batches = Batches(
            ctx.images,
            size=settings.patch,
            sizes=ctx.sizes,
            batch=settings.batch if ctx.batches else 1,
            fraction=settings.holdout,
            crops=settings.holdout_crops,
            generator=generator,
            elsewhere=ctx.elsewhere if settings.holdout_origin == "other" else (),
            held_size=settings.holdout_patch or None,
        )
        turns = settings.turns and turns_agree(ctx, batches.held, settings.turns_apart)
        self.refused = settings.turns and not turns
        self.teaching = Teaching(ctx, loss, turns)
        self.judging = Teaching(ctx, SquaredError() if settings.judged_by == "error" else loss, turns)
        self.held = KeptLessons(batches.held, self.judging.teach, ctx.memory)
        self.lessons = fresh_lessons(batches, self.teaching.teach)
        if settings.crops:
            own = settings.answers_mb * 10**6
            memory = own if ctx.memory is None else min(own, ctx.memory)
            self.lessons = repeated_lessons(
                batches, self.teaching.teach, crops=settings.crops, memory=memory, generator=generator
            )
        self.vectors = list(rates)
        groups = [{"params": [vector], "lr": peak, "peak": peak} for vector, peak in rates.items()]
        groups = groups or [{"params": [], "lr": 0.0, "peak": 0.0}]  # torch asks for one even where nothing learns
        # Gradients of a mean over an image can be as small as Adam's usual eps.
        self.optimizer = torch.optim.Adam(groups, betas=settings.betas, eps=1e-12)

    def run(self) -> PassReport:
        """All steps; afterwards the parameters have the best state."""
        settings, interim = self.settings, self.ctx.interim
        saved = interim.load("dqc")
        course = self._begun() if saved is None else resume(saved, self.vectors, self.optimizer, self.lessons)
        started, first, last = time.perf_counter() - course.seconds, course.evaluations[0], False
        backs_off = settings.backoff < 1
        try:
            with self.ctx.progress.task("dqc", settings.steps) as advance:
                done = len(course.losses)
                advance(done)
                for step in range(done + 1, settings.steps + 1):
                    course.losses.append(self.step(step, min(1.0, self._done(step - 1, time.perf_counter() - started))))
                    if not self.reached:
                        break
                    last = self._done(step, time.perf_counter() - started) >= 1
                    if step % settings.eval_every == 0 or last:
                        error = self.evaluate()
                        course.evaluations.append(error)
                        course.waited += 1
                        if error < course.best:
                            course.best, course.best_state = error, self._state()
                            course.best_step, course.waited = step, 0
                        elif error > first and backs_off and not last:
                            self._back_off(course.best_state)
                            course.retreats += 1
                    advance(note=f"loss {course.evaluations[-1]:.4g}")
                    if last or (settings.patience and course.waited >= settings.patience):
                        break
                    interim.save("dqc", lambda: self._interim(course, time.perf_counter() - started))
        finally:
            self._restore(course.best_state)
        if not self.reached:
            return PassReport(notes=("the picture depends on nothing that learns: nothing was trained",))
        steps = len(course.losses)
        judged = "squared error" if settings.judged_by == "error" else "loss"
        notes = [f"{judged} on held-out crops {first:.5g} -> {course.best:.5g}, at step {course.best_step} of {steps}"]
        if self.refused:
            notes.append("turned crops get answers too far from the float network's own, which taught alone")
        if course.retreats:
            often = f"{course.retreats} times, by {settings.backoff:g} each"
            notes.append(f"the learning rate was too high and lowered {often}")
        figures = {key: quantizer.figures() for key, quantizer in self.learners.items()}
        return PassReport(
            quantizers=figures,
            series={"loss": tuple(course.losses), f"held_out_{settings.judged_by}": tuple(course.evaluations)},
            notes=tuple(notes),
        )

    def _begun(self) -> Course:
        """The course of a training before its first step."""
        error = self.evaluate()
        return Course(error, self._state(), [error])

    def _interim(self, course: Course, seconds: float) -> State:
        return state_of(course, seconds, self.vectors, self.optimizer, self.lessons)

    def _done(self, steps: int, seconds: float) -> float:
        """The part of the run that is over, from 0 on: by steps or by time, whichever is further."""
        limit = self.settings.time_limit_s
        if limit:
            seconds = self.ctx.ranks.largest(seconds)
        return max(steps / self.settings.steps, seconds / limit if limit else 0.0)

    def step(self, step: int, done: float) -> float:
        """One step of the optimizer, the `step`-th from 1, when the part `done` of the run is over; the loss before."""
        lesson, ranks = next(self.lessons), self.ctx.ranks
        loss = self.teaching.student_loss(lesson)
        value = ranks.mean(float(loss.detach()), lesson.crops)
        if not math.isfinite(value):
            raise CalibrationError(f"dqc: the loss is {value} at step {step}; try a lower `lr`")
        self.reached = ranks.largest(loss.requires_grad) > 0
        if not self.reached:
            return value
        self.optimizer.zero_grad(set_to_none=False)  # gradients of the quantizers are views of the vectors' gradients
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        ranks.average([vector.grad for vector in self.vectors if vector.grad is not None], lesson.crops)
        self.update(step, done)
        return value

    def update(self, step: int, done: float) -> None:
        """Moves the parameters along their gradients, and checks them."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._rate(step, done)
        self.optimizer.step()
        for key, quantizer in self.learners.items():
            if not quantizer.is_sound():
                raise CalibrationError(f"dqc: the bounds of {key} diverged at step {step}; try a lower `lr`")

    def evaluate(self) -> float:
        """The mean loss, or squared error, on the held-out crops."""
        return self.judging.mean_loss(self.held)

    def _rate(self, step: int, done: float) -> float:
        """The learning rate as a part of its peak."""
        rate = min(1.0, step / (self.settings.warmup + 1))
        return rate * 0.5 * (1 + math.cos(math.pi * done)) if self.settings.schedule == "cosine" else rate

    def _back_off(self, state: list[Tensor]) -> None:
        """Go on from a former state at a lower rate, without Adam's moments, which belong to the later states."""
        self._restore(state)
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["peak"] *= self.settings.backoff

    def _state(self) -> list[Tensor]:
        return [vector.detach().clone() for vector in self.vectors]

    @torch.no_grad()
    def _restore(self, state: list[Tensor]) -> None:
        for vector, value in zip(self.vectors, state, strict=True):
            vector.copy_(value)


def _rate_of_bounds(settings: Dqc.Settings, student: QuantizedNetwork, key: str) -> float:
    """The learning rate of the bounds of a quantizer, in units of its step."""
    if settings.weight_lr is None or student.weight_of(key) is None:
        return settings.lr
    return settings.weight_lr


def _rate_of_each(
    settings: Dqc.Settings,
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
