"""A student and its teacher: lessons, and the loss of the student on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import CalibrationError
from fxptq.passes.base import Context, QuantizedNetwork
from fxptq.passes.distill import DistillationLoss
from fxptq.passes.lessons import Lesson
from fxptq.passes.turns import turned, turned_back

_ASKED = 4
"""Batches of crops that show whether two kinds of answers agree."""


@dataclass(frozen=True)
class Teaching:
    """The networks of a context and the loss that compares them.

    Attributes:
        ctx: the networks.
        loss: the loss of the student's picture and features.
        turns: whether a crop's answer is the mean of the float network's own and of that by way of another orientation
            (see `fxptq.passes.turns`), where a batch is a tensor; its features are those of the own answer.
    """

    ctx: Context
    loss: DistillationLoss
    turns: bool = False

    @torch.no_grad()
    def teach(self, batch: Inputs) -> Lesson:
        """The lesson of this process's part of a batch; a batch of several inputs is work for the first process alone.

        Raises:
            CalibrationError: the float network does not stay finite.
        """
        ranks = self.ctx.ranks
        own = ranks.part(batch) if isinstance(batch, Tensor) else batch if ranks.first else ()
        if len(own) == 0:
            return Lesson((), torch.zeros((), dtype=torch.float32), ())
        inputs = self.ctx.placed(own)
        picture, features = self._outputs(self.ctx.teacher, inputs)
        if self.turns and _is_picture(own):
            picture = (picture + self.turned_answer(own)) / 2
        if not bool(picture.isfinite().all()):
            raise CalibrationError(
                "dqc: the float network makes NaN or infinite values of a calibration crop; calibrate on other images"
            )
        return Lesson(inputs, picture, tuple(features) if self.loss.needs_features else ())

    @torch.no_grad()
    def turned_answer(self, crops: Tensor) -> Tensor:
        """What the float network answers to crops [N, C, H, W] by way of other orientations, in their own."""
        others, numbers = turned(crops)
        return turned_back(self._outputs(self.ctx.teacher, self.ctx.placed(others))[0], numbers)

    def student_loss(self, lesson: Lesson) -> Tensor:
        """The loss of the student on a lesson, a scalar; 0 on a lesson without crops."""
        if not lesson.crops:
            return torch.zeros((), dtype=torch.float32)
        return self.loss(self._outputs(self.ctx.student, lesson.inputs), (lesson.picture, list(lesson.features)))

    @torch.no_grad()
    def mean_loss(self, lessons: Iterable[Lesson]) -> float:
        """The mean loss of the student over all crops of the lessons of all processes.

        Raises:
            CalibrationError: it is not finite.
        """
        own, number = 0.0, 0
        for lesson in lessons:
            own += float(self.student_loss(lesson)) * lesson.crops
            number += lesson.crops
        total, crops = self.ctx.ranks.totals(own, number)
        value = total / crops
        if not math.isfinite(value):
            raise CalibrationError(f"dqc: the loss on held-out crops is {value}")
        return value

    def _outputs(self, network: QuantizedNetwork, inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The picture that a network restores, and its features."""
        output, features = network.with_features(*inputs)
        return self.ctx.picture.pick(output), features


def _is_picture(batch: Inputs) -> TypeGuard[Tensor]:
    """Whether a batch is one of pictures, [N, C, H, W]."""
    return isinstance(batch, Tensor) and batch.dim() == 4


@torch.no_grad()
def turns_agree(ctx: Context, batches: Sequence[Inputs], most: float) -> bool:
    """Whether answers by way of other orientations are near to the float network's own ones.

    Args:
        ctx: the networks.
        batches: crops, of which the first few are asked for.
        most: the largest squared distance of the answers, as a multiple of the squared error of the student.
    """
    error = DistillationLoss(weight=0.0, scale="paper", output="relative", white=ctx.white)
    teaching = Teaching(ctx, error)
    own = apart = 0.0
    for batch in filter(_is_picture, batches[:_ASKED]):
        lesson = teaching.teach(batch)
        if lesson.crops:
            own += float(teaching.student_loss(lesson)) * lesson.crops
            by_turns = teaching.turned_answer(ctx.ranks.part(batch))
            apart += float(error((by_turns, []), (lesson.picture, []))) * lesson.crops
    own, apart = ctx.ranks.totals(own, apart)
    return apart <= most * own
