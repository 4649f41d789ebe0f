"""Square crops of calibration images: random ones with flips and rotations to train on, fixed ones to judge by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxptq.errors import InputError


def split(images: Sequence[Tensor], fraction: float, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
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
