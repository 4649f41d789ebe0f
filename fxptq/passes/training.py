"""A training of `dqc`: its lessons, its steps, its evaluations and the state it ends with."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxptq.errors import CalibrationError
from fxptq.io.state_file import State
from fxptq.passes.base import Context, PassReport
from fxptq.passes.course import Course, resume, state_of
from fxptq.passes.crops import Batches
from fxptq.passes.distill import DistillationLoss
from fxptq.passes.dqc_settings import DqcSettings
from fxptq.passes.lessons import KeptLessons, fresh_lessons, repeated_lessons
from fxptq.passes.teaching import Teaching, turns_agree
from fxptq.quant.quantizer import Quantizer

_TOO_HIGH = 2.0
"""So many times the loss before training says that a rate that falls is too high. Less is the noise of its height, and
the end of the schedule takes that away: SPAN at W2A2 had 1.6 times as much halfway, and 0.7 times at the end."""


class Training:
    """One training run: its lessons, parameters and optimizer."""

    def __init__(
        self, settings: DqcSettings, ctx: Context, learners: dict[str, Quantizer], rates: Mapping[nn.Parameter, float]
    ) -> None:
        self.settings, self.ctx, self.learners = settings, ctx, learners
        self.reached = True  # whether the loss depends on a trained parameter
        loss = DistillationLoss(settings.feature_weight, settings.feature_scale, settings.output_loss, ctx.white)
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
        self.held = KeptLessons(batches.held, self.teaching.teach, ctx.memory)
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
        most = first * (_TOO_HIGH if settings.schedule == "cosine" else 1) if settings.backoff < 1 else math.inf
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
                        elif error > most and not last:
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
        notes = [f"loss on held-out crops {first:.5g} -> {course.best:.5g}, at step {course.best_step} of {steps}"]
        if self.refused:
            notes.append("turned crops get answers too far from the float network's own, which taught alone")
        if course.retreats:
            often = f"{course.retreats} times, by {settings.backoff:g} each"
            notes.append(f"the learning rate was too high and lowered {often}")
        figures = {key: quantizer.figures() for key, quantizer in self.learners.items()}
        return PassReport(
            quantizers=figures,
            series={"loss": tuple(course.losses), "held_out_loss": tuple(course.evaluations)},
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
        """The mean loss on the held-out crops."""
        return self.teaching.mean_loss(self.held)

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
