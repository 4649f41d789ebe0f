"""The distillation loss against the paper's formula in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxptq.passes.distill import DistillationLoss, feature_loss, output_loss
from fxptq.passes.worth import worth


def features(seed: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


SHAPES = [(2, 4, 5, 6), (2, 3, 5, 6), (2, 30, 8)]


def distances(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> list[float]:
    found = []
    for q, f in zip(student, teacher, strict=True):
        per_sample = []
        for one_q, one_f in zip(q.double().numpy(), f.double().numpy(), strict=True):
            apart = one_q / np.sqrt((one_q**2).sum()) - one_f / np.sqrt((one_f**2).sum())
            per_sample.append(np.sqrt((apart**2).sum()))
        found.append(float(np.mean(per_sample)))
    return found


def test_feature_loss_is_the_papers_formula() -> None:
    student, teacher = features(0, SHAPES), features(1, SHAPES)
    d = distances(student, teacher)
    sizes = [float(np.prod(shape[1:])) for shape in SHAPES]
    assert float(feature_loss(student, teacher, "paper")) == pytest.approx(
        sum(a / n for a, n in zip(d, sizes, strict=True)), rel=1e-5
    )
    assert float(feature_loss(student, teacher, "relative")) == pytest.approx(np.mean(d), rel=1e-5)


def test_features_of_one_direction_are_equal_whatever_their_size() -> None:
    teacher = features(0, SHAPES)
    assert float(feature_loss([3 * t for t in teacher], teacher, "relative")) == pytest.approx(0, abs=1e-6)
    assert float(feature_loss([-t for t in teacher], teacher, "relative")) == pytest.approx(2, rel=1e-5)


def test_gradients_are_finite_where_the_networks_agree_or_a_feature_is_dead() -> None:
    teacher = [*features(0, SHAPES), torch.zeros(2, 3, 4, 4)]
    student = [t.clone().requires_grad_() for t in teacher]
    feature_loss(student, teacher, "relative").backward()
    for t in student:
        assert t.grad is not None
        assert t.grad.isfinite().all()


def test_loss_is_the_weighted_sum_and_needs_no_features() -> None:
    y, z = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    student, teacher = features(0, SHAPES), features(1, SHAPES)
    both = DistillationLoss(0.5, "relative")((y, student), (z, teacher))
    assert float(output_loss(y, z)) == pytest.approx(float((y - z).abs().mean()))
    squared = float(DistillationLoss(0.0, "paper", "squared")((y, student), (z, teacher)))
    assert squared == pytest.approx(float((y.double() - z.double()).square().mean()))
    relative = float(DistillationLoss(0.0, "paper", "relative", white=2.0)((y, student), (z, teacher)))
    weighted = (y.double() - z.double()).square().mean((1, 2, 3)) * worth(z, 2.0)
    assert relative == pytest.approx(float(weighted.mean()))
    assert float(both) == pytest.approx(float(output_loss(y, z) + 0.5 * feature_loss(student, teacher, "relative")))
    assert float(DistillationLoss(0.5, "relative")((y, []), (z, []))) == pytest.approx(float(output_loss(y, z)))
    assert float(DistillationLoss(0.0, "paper")((y, student), (z, teacher))) == float(output_loss(y, z))
