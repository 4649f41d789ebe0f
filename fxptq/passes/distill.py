"""The loss by which a float network teaches its quantized self (2DQuant, arXiv 2406.06649): L = L_O + lambda L_F."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fxptq.passes.worth import worth

FeatureScale = Literal["relative", "paper"]
OutputLoss = Literal["absolute", "squared", "relative"]


def output_loss(student: Tensor, teacher: Tensor, kind: OutputLoss = "absolute", white: float = 1.0) -> Tensor:
    """L_O: how far the student's pictures are from the teacher's.

    - `absolute`: the mean absolute difference, as in the paper;
    - `squared`: the mean squared difference;
    - `relative`: the mean squared difference of each picture times its `worth`, that is, as a multiple of the mean
      square of the differences of neighbours.

    Args:
        student: pictures [N, C, H, W].
        teacher: pictures of the same shape.
        kind: one of the three.
        white: the value of white in the pictures.

    Returns:
        A scalar.
    """
    if kind == "absolute":
        return F.l1_loss(student, teacher)
    if kind == "squared":
        return F.mse_loss(student, teacher)
    weight = worth(teacher, white)
    squares = (student - teacher).square().reshape(len(weight), -1).mean(1)
    return (weight.to(squares) * squares).mean()


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], scale: FeatureScale) -> Tensor:
    """L_F: the distance of the features, after each is scaled to a vector of unit length for every picture.

    With d_i = || q_i / ||q_i|| - f_i / ||f_i|| ||_2 (0 to 2), averaged over the batch, it is

    - `paper`: sum_i d_i / (C_i H_i W_i), as the paper writes it. At usual sizes that is 1e5 times less than L_O;
    - `relative`: mean_i d_i, which is of the order of L_O whatever the size of the features and their number.

    Args:
        student: features of the quantized network, [N, ...] each.
        teacher: features of the float network, of the same shapes.
        scale: `relative` or `paper`.

    Returns:
        A scalar; 0 if there are no features.
    """
    terms = []
    for q, f in zip(student, teacher, strict=True):
        difference = F.normalize(q.flatten(1), dim=1) - F.normalize(f.flatten(1), dim=1)
        distance = torch.linalg.vector_norm(difference, dim=1).mean()
        terms.append(distance / (q[0].numel() if scale == "paper" else len(student)))
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float32)


@dataclass(frozen=True)
class DistillationLoss:
    """L_O + weight * L_F.

    Attributes:
        weight: lambda, the factor of the feature loss; with 0 it is not computed.
        scale: scale of the feature loss, see `feature_loss`.
        output: kind of L_O, see `output_loss`.
        white: the value of white in the pictures.
    """

    weight: float
    scale: FeatureScale
    output: OutputLoss = "absolute"
    white: float = 1.0

    @property
    def needs_features(self) -> bool:
        """Whether the factor is above 0."""
        return self.weight > 0

    def __call__(self, student: tuple[Tensor, list[Tensor]], teacher: tuple[Tensor, list[Tensor]]) -> Tensor:
        """Loss of (output, features) of both networks for a batch, a scalar: the less, the better."""
        loss = output_loss(student[0], teacher[0], self.output, self.white)
        return loss + self.weight * feature_loss(student[1], teacher[1], self.scale) if self.needs_features else loss
