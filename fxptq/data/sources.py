"""Where calibration inputs come from: a folder of photographs, generated pictures, or the caller's own tensors.

Promises: inputs are `[1, C, h, w]` float32 in the network's own range, made as the network's inputs are made (shrunk,
noisy, compressed); the same seed gives the same inputs; unfit sources are refused by name. Of a folder of any size only
a sample is read; a picture that cannot be used is named and passed over, as long as such pictures are few.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxptq.data.degrade import Degradation
from fxptq.data.loaders import network_inputs
from fxptq.data.pairs import INPUT, is_paired, pairs_in
from fxptq.data.synthetic import synthetic_image
from fxptq.errors import InputError
from fxptq.io.folders import check_pictures, sample_digest, sample_files, walk_pictures
from fxptq.io.images import read_image, to_tensor
from fxptq.sizes import ANY_SIZE, Size, Sizes

Inputs = Tensor | tuple[Tensor, ...]
"""What a network is called with: a picture, or the several inputs of a network that takes more."""

SYNTHETIC = "synthetic"
SMALLEST_PICTURE = 16  # pixels; anything smaller is an icon and says nothing about photographs
MOST_UNFIT = 0.25  # of the pictures that are opened; a folder with a larger share of damaged pictures is refused

_log = logging.getLogger("fxptq")


def calibration_images(
    source: str | Path | Iterable[Inputs],
    degradation: Degradation,
    *,
    channels: int = 3,
    value_range: float = 1.0,
    sizes: Sizes = ANY_SIZE,
    count: int = 32,
    size: int = 64,
    seed: int = 0,
    tensors: int = 1,
) -> tuple[list[Inputs], str]:
    """Collect calibration inputs.

    Args:
        source: a folder of clean pictures, also in folders below it, or of pairs (`input/` and `target/`), whose inputs
            are taken as they are; "synthetic" for generated pictures (`./synthetic` is a folder of that name); or one
            or more tensors that are network inputs already, all of which are taken as they are; a tuple each for a
            network of several inputs; or a data loader of training code, of which `count` inputs are taken, see
            `fxptq.data.loaders`.
        degradation: how clean pictures become inputs; not applied to tensors.
        channels: of the inputs: 1 or 3, or any number for tensors.
        value_range: what the network takes white to be; not applied to tensors.
        sizes: the sizes that the network takes; not applied to tensors.
        count: how many inputs to make from pictures.
        size: the height and width in pixels that inputs made from pictures have at least; a network of one size gets
            that size.
        seed: decides which pictures, which crops, and their flips, turns and noise.
        tensors: the number of tensors that the network takes at a call.

    Returns:
        The inputs, and one line that says what they are; for a folder with the digest of the sample (see
        `fxptq.io.folders.sample_digest`).

    Raises:
        InputError: the folder is missing or empty, more than a quarter of the pictures that were opened are broken or
            smaller than 16 pixels, a tensor is unfit, nothing was given, or pictures were given to a network that takes
            other than 1 or 3 channels.
    """
    inputs: list[Inputs]
    if isinstance(source, str | Path):
        if count < 1 or size < 1:
            raise InputError(f"calibration needs at least one picture of at least one pixel, not {count} of {size}")
        if channels not in (1, 3):
            raise InputError(
                f"pictures have 1 or 3 channels, and the network takes {channels}; give tensors to calibrate with"
            )
        height, width = sizes.near(size, size)
        clean = height * degradation.scale, width * degradation.scale
        if source == SYNTHETIC:
            pictures = [synthetic_image(*clean, channels, _rng(seed, i)) for i in range(count)]
            what = "generated pictures"
        elif is_paired(Path(source)):
            crops, words = _crops(Path(source), channels, count, (height, width), seed)
            inputs = [to_tensor(crop, value_range) for crop in crops]
            return inputs, f"{count} crops of the inputs of the pairs in {words}, {height}x{width}, seed {seed}"
        else:
            pictures, words = _crops(Path(source), channels, count, clean, seed)
            what = f"crops of the pictures in {words}"
        inputs = [to_tensor(degradation.apply(p, _rng(seed, i, 1)), value_range) for i, p in enumerate(pictures)]
        return inputs, f"{count} {what}, {height}x{width}, {degradation}, seed {seed}"
    return _checked([source] if isinstance(source, Tensor) else source, channels, tensors, count)


def check_calibration(folder: Path) -> None:
    """Looks for pictures to calibrate on in a folder, without reading any.

    Raises:
        InputError: there are none.
    """
    check_pictures(folder / INPUT if is_paired(folder) else folder)


def clean_pictures(
    source: str | Path, channels: int, indices: range, size: Size, seed: int
) -> list[npt.NDArray[np.uint8]]:
    """Makes the clean pictures of these indices, of which calibration takes the first ones.

    Args:
        source: a folder, or "synthetic"; a folder of pairs gives generated pictures.
        channels: 1 or 3.
        indices: which pictures; a folder's files are used in turn, in an order that the seed decides.
        size: height and width in pixels.
        seed: see `calibration_images`.

    Raises:
        InputError: the folder is missing or empty, or a picture is broken or too small.
    """
    if source == SYNTHETIC:
        return [synthetic_image(*size, channels, _rng(seed, i)) for i in indices]
    if is_paired(Path(source)):
        return clean_pictures(SYNTHETIC, channels, indices, size, seed)
    return _crops(Path(source), channels, indices.stop, size, seed)[0][indices.start :]


def _rng(seed: int, index: int, purpose: int = 0) -> np.random.Generator:
    """A stream of its own for each picture and purpose, so that one more picture changes no other."""
    return np.random.default_rng([seed, index, purpose])


def _crops(folder: Path, channels: int, count: int, size: Size, seed: int) -> tuple[list[npt.NDArray[np.uint8]], str]:
    """Random crops, flipped and turned at random, and words for their source.

    Every file is used before any is used again. Only files of the sample are opened.
    """
    # With so many candidates, the share of unfit pictures is exceeded before they run out.
    most = math.floor(count / (1 - MOST_UNFIT)) + 1
    files = (pair.input for pair in pairs_in(folder)) if is_paired(folder) else walk_pictures(folder)
    sample = sample_files(files, folder, most, seed)
    crops: list[npt.NDArray[np.uint8]] = []
    fit: list[Path] = []
    unfit: list[InputError] = []
    for file in sample.files:
        if len(crops) == count:
            break
        try:
            crops.append(_crop(file, channels, size, _rng(seed, len(crops))))
            fit.append(file)
        except InputError as error:
            unfit.append(error)
    opened = len(fit) + len(unfit)
    if len(unfit) > MOST_UNFIT * opened:
        more = f" ({len(unfit)} of {opened} pictures cannot be used, and 1 in 4 may be passed over)"
        raise InputError(f"{unfit[0]}{more if opened > 1 else ''}")
    for found in unfit:
        _log.warning("%s; calibration passes it over", found)
    while len(crops) < count:
        crops.append(_crop(fit[len(crops) % len(fit)], channels, size, _rng(seed, len(crops))))
    counted = f"{sample.total} files, {len(unfit)} of {opened} passed over" if unfit else f"{sample.total} files"
    return crops, f"{folder.resolve().name} ({counted}, sample sha256:{sample_digest(fit, folder)})"


def _crop(file: Path, channels: int, size: Size, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    image = read_image(file, channels)
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_PICTURE:
        raise InputError(
            f"{file}: is {width}x{height}; pictures to calibrate with need at least {SMALLEST_PICTURE} pixels each way"
        )
    # A picture smaller than the crop is continued by reflection.
    high, wide = size
    image = np.pad(image, ((0, max(0, high - height)), (0, max(0, wide - width)), (0, 0)), mode="reflect")
    top = int(rng.integers(0, image.shape[0] - high + 1))
    left = int(rng.integers(0, image.shape[1] - wide + 1))
    turns = int(rng.integers(4)) if high == wide else 2 * int(rng.integers(2))  # a quarter turn would swap the sides
    crop = np.rot90(image[top : top + high, left : left + wide], turns)
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def _checked(given: Iterable[Inputs], channels: int, tensors: int, count: int) -> tuple[list[Inputs], str]:
    """The caller's tensors, each batch split into single inputs; several inputs at a time stay as they are."""
    inputs: list[Inputs] = []
    for index, (tensor, of_training) in enumerate(network_inputs(given, tensors)):
        if of_training and len(inputs) >= count:
            return inputs[:count], f"{count} inputs of a data loader"
        name = f"calibration input {index}"
        if isinstance(tensor, tuple):
            inputs.append(_tuple(tensor, name))
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} is of type {type(tensor).__name__}; expected a tensor [N, {channels}, H, W]")
        if tensor.ndim != 4 or tensor.shape[1] != channels or 0 in tensor.shape:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected [N, {channels}, H, W], none of them 0")
        if not tensor.is_floating_point():
            raise InputError(f"{name} is of type {tensor.dtype}; expected floats in the network's own range")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} holds values that are not finite")
        single = tensor.detach().to("cpu", torch.float32)
        inputs.extend(single[i : i + 1] for i in range(len(single)))
    if not inputs:
        raise InputError("no calibration inputs were given; give tensors, a folder of pictures, or 'synthetic'")
    return inputs, f"{len(inputs)} inputs given as tensors"


def _tuple(tensors: tuple[Tensor, ...], name: str) -> tuple[Tensor, ...]:
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} has a {type(tensor).__name__} at position {position}; expected tensors")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{name} holds values that are not finite at position {position}")
    return tuple(tensor.detach().to("cpu") for tensor in tensors)
