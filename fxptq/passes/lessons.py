"""Lessons of a distillation: batches of inputs with the float network's answers, kept while a budget of memory lasts.

With a fixed set of crops the float network answers once for each batch instead of once a step. Answers beyond the
budget are computed again, with the same values, so that the budget changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.passes.crops import Batches


@dataclass(frozen=True)
class Lesson:
    """A batch of inputs and the answers of the float network.

    Attributes:
        inputs: the arguments of the network, on its device; none where the batch has no crop for this process.
        picture: the restored pictures, [N, C, H, W].
        features: the values at the ends of the residual stages, [N, ...] each; empty where the loss reads none.
    """

    inputs: tuple[Tensor, ...]
    picture: Tensor
    features: tuple[Tensor, ...]

    @property
    def crops(self) -> int:
        """The number of crops."""
        return len(self.inputs[0]) if self.inputs else 0

    @property
    def nbytes(self) -> int:
        """The memory of its tensors in bytes."""
        return sum(x.nbytes for x in (*self.inputs, self.picture, *self.features))


Teach = Callable[[Inputs], Lesson]
"""Makes the lesson of a batch."""


def fresh_lessons(batches: Batches, teach: Teach) -> Iterator[Lesson]:
    """Lessons on new random batches, without end."""
    while True:
        yield teach(batches.draw())


def repeated_lessons(
    batches: Batches, teach: Teach, *, crops: int, memory: int, generator: torch.Generator
) -> Iterator[Lesson]:
    """Lessons on a fixed set of batches, without end: all of them in random order, then again in another order.

    Args:
        batches: the source of the batches.
        teach: makes the lesson of a batch, the same one whenever it is asked.
        crops: the least number of crops in the set.
        memory: budget of the lessons that are kept, in bytes.
        generator: source of randomness.
    """
    inputs = batches.fixed(crops)
    kept: dict[int, Lesson] = {}
    while True:
        for index in torch.randperm(len(inputs), generator=generator).tolist():
            lesson = kept.get(index) or teach(inputs[index])
            if index not in kept and lesson.nbytes <= memory:
                kept[index] = lesson
                memory -= lesson.nbytes
            yield lesson
