"""The course of a training: all of its state beside the settings and the data, which a run that goes on reads back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxptq.io.state_file import State
from fxptq.passes.lessons import Lessons

_COUNTS = ("best", "best_step", "waited", "retreats", "seconds")


@dataclass
class Course:
    """The course of a training so far.

    Attributes:
        best: the least loss on held-out crops.
        best_state: the value of each vector then.
        evaluations: the losses on held-out crops, the loss before the training first.
        losses: the loss of each step.
        best_step: the step of the least loss; 0 for the start.
        waited: number of evaluations since then.
        retreats: number of times that the learning rate was lowered.
        seconds: duration of the training in the processes before this one.
    """

    best: float
    best_state: list[Tensor]
    evaluations: list[float]
    losses: list[float] = field(default_factory=list)
    best_step: int = 0
    waited: int = 0
    retreats: int = 0
    seconds: float = 0.0


def state_of(
    course: Course, seconds: float, vectors: Sequence[Tensor], optimizer: torch.optim.Optimizer, lessons: Lessons
) -> State:
    """The state of a training after a step.

    Args:
        course: its course.
        seconds: its duration so far.
        vectors: the parameters that learn.
        optimizer: the optimizer of these vectors, with one group and its `peak` rate for each.
        lessons: the source of its lessons.
    """
    start, given = lessons.place
    tensors = {
        "lessons": start,
        "losses": torch.tensor(course.losses, dtype=torch.float64),
        "evaluations": torch.tensor(course.evaluations, dtype=torch.float64),
    }
    for index, (vector, best) in enumerate(zip(vectors, course.best_state, strict=True)):
        tensors |= {f"vector.{index}": vector.detach(), f"best.{index}": best}
        tensors |= {f"optimizer.{index}.{name}": x for name, x in optimizer.state[vector].items()}
    numbers = {name: getattr(course, name) for name in _COUNTS}
    peaks = [group["peak"] for group in optimizer.param_groups]
    return State({**numbers, "seconds": seconds, "given": given, "peaks": peaks}, tensors)


@torch.no_grad()
def resume(state: State, vectors: Sequence[Tensor], optimizer: torch.optim.Optimizer, lessons: Lessons) -> Course:
    """Gives a training that is about to start the state of `state_of`, and returns its course; see there."""
    numbers, tensors = state.numbers, state.tensors
    for index, vector in enumerate(vectors):
        vector.copy_(tensors[f"vector.{index}"])
        prefix = f"optimizer.{index}."
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        if own:  # a count of steps stays on the CPU
            optimizer.state[vector] = {name: x.to(vector.device) if x.dim() else x for name, x in own.items()}
    for group, peak in zip(optimizer.param_groups, numbers["peaks"], strict=True):
        group["peak"] = peak
    lessons.go_to(tensors["lessons"], numbers["given"])
    return Course(
        best_state=[tensors[f"best.{index}"].to(vector.device) for index, vector in enumerate(vectors)],
        evaluations=tensors["evaluations"].tolist(),
        losses=tensors["losses"].tolist(),
        **{name: numbers[name] for name in _COUNTS},
    )
