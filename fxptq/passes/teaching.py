"""A student and its teacher: lessons, and the loss of the student on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import CalibrationError
from fxptq.passes.base import Context, QuantizedNetwork
from fxptq.passes.distill import DistillationLoss
from fxptq.passes.lessons import Lesson


@dataclass(frozen=True)
class Teaching:
    """The networks of a context and the loss that compares them.

    Attributes:
        ctx: the networks.
        loss: the loss of the student's picture and features.
    """

    ctx: Context
    loss: DistillationLoss

    @torch.no_grad()
    def teach(self, batch: Inputs) -> Lesson:
        """The lesson of a batch.

        Raises:
            CalibrationError: the float network does not stay finite.
        """
        inputs = self.ctx.placed(batch)
        picture, features = self._outputs(self.ctx.teacher, inputs)
        if not bool(picture.isfinite().all()):
            raise CalibrationError(
                "dqc: the float network makes NaN or infinite values of a calibration crop; calibrate on other images"
            )
        return Lesson(inputs, picture, tuple(features) if self.loss.weight else ())

    def student_loss(self, lesson: Lesson) -> Tensor:
        """The loss of the student on a lesson, a scalar."""
        return self.loss(self._outputs(self.ctx.student, lesson.inputs), (lesson.picture, list(lesson.features)))

    @torch.no_grad()
    def mean_loss(self, lessons: Sequence[Lesson]) -> float:
        """The mean loss of the student over all crops of lessons.

        Raises:
            CalibrationError: it is not finite.
        """
        total = sum(float(self.student_loss(lesson)) * len(lesson.inputs[0]) for lesson in lessons)
        value = total / sum(len(lesson.inputs[0]) for lesson in lessons)
        if not math.isfinite(value):
            raise CalibrationError(f"dqc: the loss on held-out crops is {value}")
        return value

    def _outputs(self, network: QuantizedNetwork, inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The picture that a network restores, and its features."""
        output, features = network.with_features(*inputs)
        return self.ctx.picture.pick(output), features
