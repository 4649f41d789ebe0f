"""Vivid copies have stronger colours and contrast, and no value that no picture has."""

from __future__ import annotations

import torch

from fxptq.passes.vivid import vivid


def test_a_copy_is_further_from_grey_and_from_the_mean() -> None:
    picture = 0.5 + 0.02 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white, black = torch.ones(1, 3, 8, 8, dtype=torch.float64), torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    copies = vivid([picture, white, black], 1)
    assert len(copies) == 1
    for channel in range(3):
        grey = picture[0].mean(0)
        coloured = grey + 2 * (picture[0, channel] - grey)
        expected = coloured.mean() + 1.3 * (coloured - coloured.mean())
        torch.testing.assert_close(copies[0][0, channel], expected)


def test_a_copy_stays_between_the_extremes_of_all_pictures_by_channel() -> None:
    pictures = [torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    pictures[2][:, 1] *= 255
    for copy in vivid(pictures, 3):
        assert (copy <= torch.cat(pictures).amax((0, 2, 3)).view(3, 1, 1)).all()
        assert (copy >= torch.cat(pictures).amin((0, 2, 3)).view(3, 1, 1)).all()


def test_grey_pictures_get_contrast_alone_and_several_inputs_nothing() -> None:
    grey = torch.linspace(0.4, 0.6, 16).view(1, 1, 4, 4)
    (copy, *_) = vivid([grey, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)], 2)
    torch.testing.assert_close(copy, 0.5 + 1.3 * (grey - 0.5))
    assert vivid([(grey, grey)], 2) == []
    assert vivid([], 2) == []
