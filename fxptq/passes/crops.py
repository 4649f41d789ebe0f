"""Batches out of calibration inputs: random ones to train on, fixed ones to judge by.

Of pictures they are square crops, flipped and turned at random. Inputs of a network that takes several are used whole:
what a crop of one means for another only the network knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError


def split(images: Sequence[Inputs], fraction: float, generator: torch.Generator) -> tuple[list[Inputs], list[Inputs]]:
    """Part the images at random into those to train on and those to judge by.

    Args:
        images: at least one.
        fraction: of the images to judge by, 0..1; at least one is, and at least one is left. A single image is both.
        generator: source of randomness.
    """
    order = torch.randperm(len(images), generator=generator).tolist()
    held = min(max(1, round(fraction * len(images))), len(images) - 1)
    chosen = [images[i] for i in order]
    return (chosen[held:], chosen[:held]) if held else (chosen, chosen)


class Crops:
    """Crops of one size from images of any sizes.

    Args:
        images: [1, C, H, W] each; every image is equally likely, whatever its size.
        size: side of a crop in pixels; the smallest side of all images where that is less.
        generator: source of randomness.

    Attributes:
        size: side of a crop in pixels.

    Raises:
        InputError: if an image is not [1, C, H, W].
    """

    def __init__(self, images: Sequence[Tensor], size: int, generator: torch.Generator) -> None:
        for image in images:
            if image.dim() != 4 or image.shape[0] != 1:
                raise InputError(f"calibration images are [1, C, H, W], not {tuple(image.shape)}")
        self._images, self._generator = images, generator
        self.size = min(size, *(side for image in images for side in image.shape[-2:]))

    def plain(self, count: int) -> Tensor:
        """Random crops as they are, [count, C, size, size]."""
        return torch.cat([self._crop() for _ in range(count)])

    def augmented(self, count: int) -> Tensor:
        """Random crops, each in one of the eight orientations of the square, [count, C, size, size]."""
        return torch.cat([self._turn(self._crop()) for _ in range(count)])

    def _crop(self) -> Tensor:
        image = self._images[self._draw(len(self._images))]
        top, left = (self._draw(side - self.size + 1) for side in image.shape[-2:])
        return image[..., top : top + self.size, left : left + self.size]

    def _turn(self, crop: Tensor) -> Tensor:
        turned = torch.rot90(crop, self._draw(4), (2, 3))
        return turned.flip(3) if self._draw(2) else turned

    def _draw(self, choices: int) -> int:
        return int(torch.randint(choices, (), generator=self._generator))


class Batches:
    """Batches to train on, and those to judge by.

    Args:
        images: pictures [1, C, H, W], or tuples of a network's several inputs.
        size: side of a crop of pictures in pixels.
        batch: how many crops; of several inputs always one of each.
        fraction: of the images to judge by, see `split`.
        crops: how many crops to judge by.
        generator: source of randomness.

    Attributes:
        held: the batches to judge by.
    """

    def __init__(
        self,
        images: Sequence[Inputs],
        *,
        size: int,
        batch: int,
        fraction: float,
        crops: int,
        generator: torch.Generator,
    ) -> None:
        training, judging = split(images, fraction, generator)
        self._whole = [image for image in training if isinstance(image, tuple)]
        self._batch, self._generator = batch, generator
        self.held: list[Inputs] = list(judging)
        if not self._whole:
            self._crops = Crops(_pictures(training), size, generator)
            fixed = Crops(_pictures(judging), self._crops.size, generator).plain(crops)
            self.held = list(torch.split(fixed, batch))

    def draw(self) -> Inputs:
        """One to train on."""
        if self._whole:
            return self._whole[int(torch.randint(len(self._whole), (), generator=self._generator))]
        return self._crops.augmented(self._batch)


def _pictures(images: Sequence[Inputs]) -> list[Tensor]:
    return [image for image in images if isinstance(image, Tensor)]
