"""The example and the calibration inputs of a quantization, checked against the network and against each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from fxptq.checkpoint.metadata import MOST_EXAMPLE, fits
from fxptq.data.sources import SYNTHETIC, Inputs, calibration_images
from fxptq.errors import InputError
from fxptq.facts import BEYOND_WHITE, Facts

_ELSEWHERE = 8
"""Number of inputs of another origin that a training is evaluated on."""


def check_example(example: Inputs) -> None:
    """Checks an example that a caller gave.

    Args:
        example: one tensor, or a tuple of them for a network of several inputs, the picture first.

    Raises:
        InputError: it is no tensor [1, C, H, W] of floating point, or too large for the metadata of a checkpoint.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs) or "nothing"
        raise InputError(
            f"the example is {kinds}; expected a tensor [1, C, H, W], or a tuple of them if the network takes several"
        )
    first = inputs[0]
    if first.dim() != 4 or 0 in first.shape or not first.is_floating_point():
        raise InputError(
            f"the example has shape {tuple(first.shape)}, {first.dtype}; expected [1, C, H, W] of floating point"
        )
    for x in inputs:
        if not fits(x.shape):
            raise InputError(
                f"the example has shape {tuple(x.shape)}; expected {MOST_EXAMPLE} elements at most: 64 x 64 is plenty"
            )


def inputs_for(
    calib: str | Path | Iterable[Inputs], facts: Facts, example: tuple[Tensor, ...], count: int, seed: int
) -> tuple[list[Inputs], str]:
    """The calibration inputs of a network, and one line that says what they are.

    Args:
        calib: see `fxptq.api.quantize`.
        facts: the facts about the network.
        example: what the network is called with, one tensor or more.
        count: how many inputs are made from pictures.
        seed: see `fxptq.data.sources.calibration_images`.

    Raises:
        InputError: the source is not valid for the network, or inputs do not fit the example.
    """
    picture, recipe = example[0], facts.recipe
    if isinstance(calib, str | Path):
        _check_pictures_will_do(example, recipe.input.range)
    images, described = calibration_images(
        calib,
        recipe.task,
        channels=picture.shape[1],
        value_range=recipe.input.range,
        sizes=facts.sizes,
        count=count,
        size=min(picture.shape[-2:]),
        seed=seed,
        tensors=len(example),
    )
    for index, image in enumerate(images):
        tensors = len(image) if isinstance(image, tuple) else 1
        if tensors != len(example):
            raise InputError(f"calibration input {index} has {tensors} tensors, and the example has {len(example)}")
    return images, described


def inputs_of_another_origin(
    calib: str | Path | Iterable[Inputs], facts: Facts, example: tuple[Tensor, ...], seed: int
) -> list[Inputs]:
    """Generated inputs for a network that is calibrated on a folder of pictures; none otherwise."""
    if not isinstance(calib, str | Path) or calib == SYNTHETIC:
        return []
    return inputs_for(SYNTHETIC, facts, example, _ELSEWHERE, seed)[0]


def _check_pictures_will_do(example: tuple[Tensor, ...], white: float) -> None:
    if len(example) > 1:
        raise InputError(
            f"the example has {len(example)} inputs, and pictures make one: calibrate with tuples of tensors, as in "
            "fxptq.quantize(model, (x, level), bits, calib=[(x, level), ...])"
        )
    highest = float(example[0].max())
    if highest > BEYOND_WHITE * white:
        raise InputError(
            f"the example reaches {highest:.4g}, and pictures to calibrate with would be made in 0..{white:g}, the "
            "recipe's range: give a recipe with `range = 255.0` under [input], or calibrate with tensors of your own"
        )
