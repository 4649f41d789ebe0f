"""Batches out of calibration inputs: random batches to train on, fixed batches to evaluate on.

A batch of pictures holds crops of a size that the network takes, flipped and turned at random. A network of several
inputs gets them whole, because only the network knows how a crop of one input relates to another. A network that takes
no crop of its pictures gets them whole, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context
from fxptq.sizes import ANY_SIZE, Size, Sizes


def split(images: Sequence[Inputs], fraction: float, generator: torch.Generator) -> tuple[list[Inputs], list[Inputs]]:
    """Part the images at random into images to train on and images to evaluate on.

    Args:
        images: at least one image.
        fraction: share of the images to evaluate on, 0..1; each part gets at least one image. A single image is in
            both.
        generator: source of randomness.

    Returns:
        The images to train on, and the images to evaluate on.
    """
    order = torch.randperm(len(images), generator=generator).tolist()
    holdout = min(max(1, round(fraction * len(images))), len(images) - 1)
    shuffled = [images[i] for i in order]
    return (shuffled[holdout:], shuffled[:holdout]) if holdout else (shuffled, shuffled)


class Crops:
    """Crops of one size from images of any sizes.

    Args:
        images: [1, C, H, W] each, see `check_single`; every image gives as many crops, whatever its size.
        size: height and width of a crop in pixels; no image is smaller.
        generator: source of randomness.
    """

    def __init__(self, images: Sequence[Tensor], size: Size, generator: torch.Generator) -> None:
        self._images, self._size, self._generator = images, size, generator

    def augmented(self, count: int) -> Tensor:
        """Random crops, each in one of the orientations that keep its size (eight of a square), [count, C, *size]."""
        return torch.cat([self._turn(self._crop(image)) for image in self._drawn(count)])

    def _drawn(self, count: int) -> list[Tensor]:
        """Images in random order; every image is drawn before any is drawn again."""
        number = len(self._images)
        rounds = [torch.randperm(number, generator=self._generator) for _ in range(-(-count // number))]
        return [self._images[index] for index in torch.cat(rounds)[:count].tolist()]

    def _crop(self, image: Tensor) -> Tensor:
        height, width = self._size
        top, left = (self._draw(side - own + 1) for side, own in zip(image.shape[-2:], self._size, strict=True))
        return image[..., top : top + height, left : left + width]

    def _turn(self, crop: Tensor) -> Tensor:
        square = self._size[0] == self._size[1]
        turned = torch.rot90(crop, self._draw(4) if square else 2 * self._draw(2), (2, 3))
        return turned.flip(3) if self._draw(2) else turned

    def _draw(self, choices: int) -> int:
        return int(torch.randint(choices, (), generator=self._generator))


class Batches:
    """Batches to train on, and batches to evaluate on.

    Args:
        images: pictures [1, C, H, W], or tuples of a network's several inputs.
        size: side of a crop of pictures in pixels.
        sizes: the sizes that the network takes; a crop has the size among them that fits, see `Sizes.crop`.
        batch: number of crops in a batch; inputs that are used whole form batches of one.
        fraction: share of the images to evaluate on, see `split`.
        crops: number of crops to evaluate on; fewer where there are not so many different ones.
        generator: source of randomness.
        elsewhere: images of another origin to evaluate on; then all of `images` are trained on.
        held_size: side of a crop to evaluate on; None for `size`.

    Attributes:
        held: the batches to evaluate on.
        generator: source of randomness.

    Raises:
        InputError: if a picture is not [1, C, H, W].
    """

    def __init__(
        self,
        images: Sequence[Inputs],
        *,
        size: int,
        sizes: Sizes = ANY_SIZE,
        batch: int,
        fraction: float,
        crops: int,
        generator: torch.Generator,
        elsewhere: Sequence[Inputs] = (),
        held_size: int | None = None,
    ) -> None:
        self._training, holdout = (list(images), list(elsewhere)) if elsewhere else split(images, fraction, generator)
        self._batch, self.generator = batch, generator
        self._crops: Crops | None = None
        self.held: list[Inputs] = list(holdout)
        everything = [*images, *elsewhere]
        to_train, to_judge = (_crop_size(everything, side, sizes) for side in (size, held_size or size))
        if to_train is not None and to_judge is not None:
            self._crops = Crops(_pictures(self._training), to_train, generator)
            seed = int(torch.randint(1 << 31, (), generator=generator))
            judging = _pictures(crops_in_turn(Sizes(fixed=to_judge), holdout, held_size or size, crops, seed)[:crops])
            self.held = list(torch.split(torch.cat(judging), batch))

    def draw(self) -> Inputs:
        """A random batch to train on."""
        if self._crops is None:
            return self._training[int(torch.randint(len(self._training), (), generator=self.generator))]
        return self._crops.augmented(self._batch)

    def fixed(self, crops: int) -> list[Inputs]:
        """Random batches of at least so many crops together; of inputs that are used whole, each one once."""
        if self._crops is None:
            return list(self._training)
        return list(torch.split(self._crops.augmented(-(-crops // self._batch) * self._batch), self._batch))


def training_crops(ctx: Context, *, crops: int, batch: int, patch: int, fraction: float) -> list[Inputs]:
    """Batches of random crops from the inputs that a pass may choose by, the same for the same seed.

    Args:
        ctx: the calibration inputs and what the network takes.
        crops: number of crops.
        batch: crops in a batch, if the network takes batches.
        patch: side of a crop in pixels.
        fraction: share of the inputs to hold out, see `split`.
    """
    batches = Batches(
        ctx.images,
        size=patch,
        sizes=ctx.sizes,
        batch=batch if ctx.batches else 1,
        fraction=fraction,
        crops=1,
        generator=torch.Generator().manual_seed(ctx.seed),
    )
    return batches.fixed(crops)[:crops]


def crops_in_turn(sizes: Sizes, items: Sequence[Inputs], side: int, count: int, seed: int) -> list[Inputs]:
    """Crops at random places: one of each input, then another one of each, until there are enough.

    Args:
        sizes: the sizes that the network takes.
        items: the inputs; one that is no picture, or of which no such crop is taken, is used whole, once.
        side: of a crop in pixels.
        count: number of crops; more where there are more inputs, and fewer where there are not so many different ones.
        seed: decides the places.
    """
    rng = np.random.default_rng(seed)
    most = -(-count // len(items))
    of_each = [_crops_of(item, sizes, side, most, rng) for item in items]
    in_turn = [crop for turn in zip_longest(*of_each) for crop in turn if crop is not None]
    return in_turn[: max(count, len(items))]


def _crops_of(item: Inputs, sizes: Sizes, side: int, most: int, rng: np.random.Generator) -> list[Inputs]:
    """Crops of one input at different places."""
    if not isinstance(item, Tensor) or item.dim() != 4:
        return [item]
    height, width = item.shape[-2:]
    crop = sizes.crop(height, width, side)
    if crop is None:
        return [item]
    rows, columns = height - crop[0] + 1, width - crop[1] + 1
    places = rng.choice(rows * columns, min(most, rows * columns), replace=False).tolist()
    corners = (divmod(place, columns) for place in places)
    return [item[..., top : top + crop[0], left : left + crop[1]] for top, left in corners]


def _pictures(images: Sequence[Inputs]) -> list[Tensor]:
    return [image for image in images if isinstance(image, Tensor)]


def _crop_size(images: Sequence[Inputs], side: int, sizes: Sizes) -> Size | None:
    """The size of crops that fit into every image; None for inputs that are used whole."""
    pictures = _pictures(images)
    if len(pictures) < len(images):
        return None
    check_single(pictures)
    return sizes.crop(min(x.shape[2] for x in pictures), min(x.shape[3] for x in pictures), side)


def check_single(images: Sequence[Tensor]) -> None:
    """Checks that every image is one picture.

    Raises:
        InputError: if an image is not [1, C, H, W].
    """
    for image in images:
        if image.dim() != 4 or image.shape[0] != 1:
            raise InputError(f"calibration images are [1, C, H, W], not {tuple(image.shape)}")
