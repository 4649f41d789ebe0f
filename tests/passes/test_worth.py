"""What an error weighs: all pictures have a say, whatever their detail, their size and the value of white."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fxptq.passes.base import Context
from fxptq.passes.worth import worth

NewContext = Callable[..., Context]


def pictures(count: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_weight_is_one_over_the_differences_of_neighbours() -> None:
    x = pictures() * torch.tensor([1.0, 0.1, 0.01]).view(3, 1, 1, 1)
    array = x.double().numpy()
    for picture, found in zip(array, worth(x, 1.0).tolist(), strict=True):
        detail = np.mean(np.diff(picture, axis=1) ** 2) + np.mean(np.diff(picture, axis=2) ** 2)
        assert found == pytest.approx(1 / (detail + 0.03**2), rel=1e-9)


def test_the_unit_of_the_picture_changes_the_unit_of_the_weight_alone() -> None:
    torch.testing.assert_close(worth(pictures() * 255, 255.0) * 255**2, worth(pictures(), 1.0), rtol=1e-6, atol=0)


def test_a_picture_without_detail_has_a_weight() -> None:
    flat = torch.cat([torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.7)])
    assert worth(flat, 1.0).tolist() == pytest.approx([0.03**-2] * 2)


@pytest.mark.parametrize("shape", [(4, 10), (2, 3, 1, 9), (5,), ()], ids=str)
def test_outputs_that_are_no_pictures_weigh_the_same(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert worth(x, 1.0).tolist() == [1.0] * (shape[0] if shape else 1)


def test_white_is_the_largest_value_of_the_inputs(new_context: NewContext) -> None:
    ctx = new_context()
    ctx.images = [torch.full((1, 3, 8, 8), value) for value in (12.0, 250.0, 3.0)]
    assert ctx.white == 250.0
    ctx.images = [(torch.full((1, 3, 8, 8), 0.5), torch.ones(1))]
    assert ctx.white == 0.5
    ctx.images = [torch.zeros(1, 3, 8, 8)]
    assert ctx.white == 1.0
