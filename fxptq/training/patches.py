"""Training pairs: whole images in memory, and random augmented patches from them.

Promises: the degraded side of a pair is made as the inputs of a benchmark are (MATLAB's bicubic, JPEG); each patch gets
noise of its own; the same pairs and the same generator state give the same patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxptq.data.degrade import Degradation
from fxptq.errors import InputError
from fxptq.io.images import list_images, read_image


@dataclass(frozen=True)
class TrainingPair:
    """One photograph: `low` [C, h, w] and `high` [C, h * scale, w * scale], both uint8."""

    low: Tensor
    high: Tensor


def read_pair(path: Path, degradation: Degradation, channels: int = 3) -> TrainingPair:
    """Reads an image as RGB (3 channels) or grey (1) and makes its degraded side.

    Raises:
        InputError: the image cannot be read.
    """
    return make_pair(read_image(path, channels), degradation)


def read_pairs(folder: Path, degradation: Degradation, channels: int = 3) -> list[TrainingPair]:
    """Reads every image of a folder, in the order of the names; see `read_pair`.

    Raises:
        InputError: the folder holds no images, or one that cannot be read.
    """
    return [read_pair(path, degradation, channels) for path in list_images(folder)]


def make_pair(image: npt.NDArray[np.uint8], degradation: Degradation) -> TrainingPair:
    """Crops [H, W, C] uint8 to a multiple of the scale and degrades it; `PatchSampler.draw` adds noise later."""
    height, width = (size - size % degradation.scale for size in image.shape[:2])
    high = np.array(image[:height, :width])
    degraded = high if degradation.task.random else degradation.apply(high, np.random.default_rng(0))
    low = degraded.astype(np.uint8)  # all levels are whole numbers
    return TrainingPair(torch.from_numpy(low).permute(2, 0, 1), torch.from_numpy(high).permute(2, 0, 1))


def add_noise(low: Tensor, degradation: Degradation, generator: torch.Generator) -> Tensor:
    """Adds the noise of the degradation to `low`, float in 0..1; `low` stays as it is for other kinds."""
    if degradation.kind != "noise":
        return low
    return low + degradation.sigma / 255 * torch.randn(low.shape, generator=generator, device=low.device)


class PatchSampler:
    """Draws patches from all positions of all images with equal chance, turned and mirrored at random.

    All images lie one after another in the memory of the device, and a batch is gathered by one index, so that a GPU
    does not wait for the processor.

    Args:
        pairs: the images.
        degradation: the degradation that the pairs were made with; its noise is added here.
        seed: seed of all random numbers.
        largest: side of the largest low-resolution patch that will be asked for.
        device: where the images are kept and patches are made.

    Raises:
        InputError: an image is smaller than the largest patch.
    """

    def __init__(
        self,
        pairs: Sequence[TrainingPair],
        degradation: Degradation,
        seed: int,
        largest: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        smallest = min(min(pair.low.shape[1:]) for pair in pairs)
        if smallest < largest:
            raise InputError(
                f"an image is {smallest} pixels wide as the network's input, smaller than the patch of {largest}"
            )
        self.degradation = degradation
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._low = torch.cat([pair.low.flatten(1) for pair in pairs], 1).to(self.device)
        self._high = torch.cat([pair.high.flatten(1) for pair in pairs], 1).to(self.device)
        sizes = torch.tensor([pair.low.shape[1:] for pair in pairs])
        areas = sizes.prod(1)
        starts = areas.cumsum(0) - areas
        self._chances = areas.double().to(self.device)
        self._sizes, self._starts = sizes.to(self.device), starts.to(self.device)

    def draw(self, batch: int, patch: int) -> tuple[Tensor, Tensor]:
        """Draws a batch.

        Args:
            batch: number of patches.
            patch: side of the low-resolution patch, pixels.

        Returns:
            Low [batch, C, patch, patch] and high [batch, C, patch * scale, patch * scale], float32 in 0..1 on the
            sampler's device; noisy low values may lie outside.
        """
        chosen = torch.multinomial(self._chances, batch, replacement=True, generator=self.generator)
        sizes, starts = self._sizes[chosen], self._starts[chosen]
        corners = (self._random(batch, 2) * (sizes - patch + 1)).long()
        mirrored = self._random(batch, 2) < 0.5
        turned = self._random(batch) < 0.5
        cuts = []
        for images, factor in ((self._low, 1), (self._high, self.degradation.scale)):
            inside = _positions(corners * factor, sizes * factor, mirrored, turned, patch * factor)
            cut = images[:, starts[:, None, None] * factor**2 + inside]
            cuts.append(cut.transpose(0, 1).float() / 255)
        return add_noise(cuts[0], self.degradation, self.generator), cuts[1]

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device, dtype=torch.float64)


def _positions(corners: Tensor, sizes: Tensor, mirrored: Tensor, turned: Tensor, side: int) -> Tensor:
    """Where the pixels of patches lie in their images.

    Args:
        corners: [B, 2], row and column of each patch's first pixel.
        sizes: [B, 2], height and width of each image.
        mirrored: [B, 2] bool, whether rows and columns run backwards.
        turned: [B] bool, whether rows and columns change places.
        side: of the square patches.

    Returns:
        [B, side, side], the pixel's number in its image, row by row.
    """
    forth = torch.arange(side, device=corners.device)
    steps = torch.where(mirrored.unsqueeze(2), side - 1 - forth, forth) + corners.unsqueeze(2)
    rows, columns = steps[:, 0], steps[:, 1]
    width = sizes[:, 1, None, None]
    straight = rows.unsqueeze(2) * width + columns.unsqueeze(1)
    across = rows.unsqueeze(1) * width + columns.unsqueeze(2)
    return torch.where(turned[:, None, None], across, straight)
