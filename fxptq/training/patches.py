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
    return low + degradation.sigma / 255 * torch.randn(low.shape, generator=generator)


class PatchSampler:
    """Draws patches from all positions of all images with equal chance, turned and mirrored at random.

    Args:
        pairs: the images.
        degradation: the degradation that the pairs were made with; its noise is added here.
        seed: seed of all random numbers.
        largest: side of the largest low-resolution patch that will be asked for.

    Raises:
        InputError: an image is smaller than the largest patch.
    """

    def __init__(self, pairs: Sequence[TrainingPair], degradation: Degradation, seed: int, largest: int = 1) -> None:
        smallest = min(min(pair.low.shape[1:]) for pair in pairs)
        if smallest < largest:
            raise InputError(
                f"an image is {smallest} pixels wide as the network's input, smaller than the patch of {largest}"
            )
        self.pairs = list(pairs)
        self.degradation = degradation
        self.generator = torch.Generator().manual_seed(seed)
        self._areas = torch.tensor([pair.low.shape[1] * pair.low.shape[2] for pair in self.pairs], dtype=torch.float64)

    def draw(self, batch: int, patch: int) -> tuple[Tensor, Tensor]:
        """Draws a batch.

        Args:
            batch: number of patches.
            patch: side of the low-resolution patch, pixels.

        Returns:
            Low [batch, C, patch, patch] and high [batch, C, patch * scale, patch * scale], float32 in 0..1; noisy low
            values may lie outside.
        """
        chosen = torch.multinomial(self._areas, batch, replacement=True, generator=self.generator)
        lows, highs = zip(*(self._cut(self.pairs[index], patch) for index in chosen.tolist()), strict=True)
        low, high = torch.stack(lows).float() / 255, torch.stack(highs).float() / 255
        return add_noise(low, self.degradation, self.generator), high

    def _cut(self, pair: TrainingPair, patch: int) -> tuple[Tensor, Tensor]:
        top = self._below(pair.low.shape[1] - patch + 1)
        left = self._below(pair.low.shape[2] - patch + 1)
        turns, mirrored = self._below(4), self._below(2)
        cuts = []
        for image, factor in ((pair.low, 1), (pair.high, self.degradation.scale)):
            side = patch * factor
            cut = image[:, top * factor : top * factor + side, left * factor : left * factor + side]
            cut = torch.rot90(cut, turns, (1, 2))
            cuts.append(cut.flip(2) if mirrored else cut)
        return cuts[0], cuts[1]

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))
