"""Lessons of a distillation: batches of inputs with the float network's answers, kept while a budget of memory lasts.

With a fixed set of crops the float network answers once for each batch instead of once a step. Answers beyond the
budget are computed again, with the same values, so that the budget changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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


class KeptLessons(Iterable[Lesson]):
    """The lessons of some batches, made when they are asked for, and kept while a budget of memory lasts.

    Args:
        inputs: the batches.
        teach: makes the lesson of a batch, the same one whenever it is asked.
        memory: the budget in bytes; None for all that is needed.

    Attributes:
        left: the rest of the budget.
    """

    def __init__(self, inputs: Sequence[Inputs], teach: Teach, memory: int | None) -> None:
        self.left = memory
        self._inputs, self._teach = inputs, teach
        self._kept: dict[int, Lesson] = {}

    def __len__(self) -> int:
        """The number of lessons."""
        return len(self._inputs)

    def __iter__(self) -> Iterator[Lesson]:
        """The lessons, in the order of the batches."""
        return map(self.lesson, range(len(self)))

    def lesson(self, index: int) -> Lesson:
        """The lesson of a batch."""
        lesson = self._kept.get(index) or self._teach(self._inputs[index])
        if index not in self._kept and (self.left is None or lesson.nbytes <= self.left):
            self._kept[index] = lesson
            self.left = None if self.left is None else self.left - lesson.nbytes
        return lesson


class Lessons(Iterator[Lesson]):
    """Lessons without end, in rounds, whose place can be read and found again.

    Args:
        draw: draws the lessons of a round at random; each is made when it is called.
        generator: the source of randomness of `draw`.
    """

    def __init__(self, draw: Callable[[], Sequence[Callable[[], Lesson]]], generator: torch.Generator) -> None:
        self._draw, self._generator = draw, generator
        self._start = generator.get_state()
        self._round: Sequence[Callable[[], Lesson]] = ()
        self._given = 0

    def __next__(self) -> Lesson:
        """The next lesson."""
        if self._given == len(self._round):
            self._start, self._given = self._generator.get_state(), 0
            self._round = self._draw()
        self._given += 1
        return self._round[self._given - 1]()

    @property
    def place(self) -> tuple[Tensor, int]:
        """The state of the generator at the start of the round, and the number of lessons given since then."""
        return self._start, self._given

    def go_to(self, start: Tensor, given: int) -> None:
        """Goes to a place that lessons of the same source had; no lesson is made for it."""
        self._generator.set_state(start)
        self._start, self._given = start, given
        self._round = self._draw() if given else ()


def fresh_lessons(batches: Batches, teach: Teach) -> Lessons:
    """Lessons on new random batches; each is a round."""
    return Lessons(lambda: [partial(teach, batches.draw())], batches.generator)


def repeated_lessons(batches: Batches, teach: Teach, *, crops: int, memory: int, generator: torch.Generator) -> Lessons:
    """Lessons on a fixed set of batches: all of them in random order, then again in another order.

    Args:
        batches: the source of the batches.
        teach: makes the lesson of a batch, the same one whenever it is asked.
        crops: the least number of crops in the set.
        memory: budget of the lessons that are kept, in bytes.
        generator: source of randomness.
    """
    kept = KeptLessons(batches.fixed(crops), teach, memory)

    def draw() -> list[Callable[[], Lesson]]:
        return [partial(kept.lesson, index) for index in torch.randperm(len(kept), generator=generator).tolist()]

    return Lessons(draw, generator)
