"""A start for training: a network begins as the best linear interpolator that its up-sampling layer can express.

The architecture stays as it is. Three feature channels carry the colours, the residual branch starts at zero, and the
up-sampling convolution holds one 3x3 kernel for each sub-pixel phase, fitted by least squares on training images. A
short training then learns only the details that interpolation misses.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR
from fxptq.training.patches import TrainingPair

POSITIONS = 9  # of a 3x3 kernel
COLOURS = 3


def fit_phase_kernels(pairs: Iterable[TrainingPair], scale: int) -> Tensor:
    """Fits, for each of the scale^2 sub-pixel phases, the 3x3 kernel that predicts it best from the low resolution.

    The fit is ordinary least squares over all inner pixels of all images and colours, by the normal equations in
    float64.

    Returns:
        [scale, scale, 3, 3] float32: row phase, column phase, kernel.
    """
    gram = torch.zeros(POSITIONS, POSITIONS, dtype=torch.float64)
    moment = torch.zeros(POSITIONS, scale * scale, dtype=torch.float64)
    for pair in pairs:
        # Each colour is an image of its own, and is centred so that the fit sees structure and not brightness.
        low = pair.low.unsqueeze(1).double() / 255
        centre = low.mean(dim=(2, 3), keepdim=True)
        neighbours = F.unfold(low - centre, 3).transpose(0, 1).flatten(1)
        phases = F.pixel_unshuffle(pair.high.unsqueeze(1).double() / 255 - centre, scale)[:, :, 1:-1, 1:-1]
        gram += neighbours @ neighbours.T
        moment += neighbours @ phases.transpose(0, 1).flatten(1).T
    kernels: Tensor = torch.linalg.solve(gram, moment)
    return kernels.T.reshape(scale, scale, 3, 3).float()


@torch.no_grad()
def start_as_interpolator(model: nn.Module, kernels: Tensor) -> None:
    """Sets the weights of a fresh network so that it interpolates by `kernels`; the module's text explains how.

    Args:
        model: an `EDSR`, or a `SwinIR` with the upsampler "pixelshuffledirect"; changed in place.
        kernels: [scale, scale, 3, 3].

    Raises:
        TypeError: the network is neither of the two.
    """
    if isinstance(model, SwinIR) and model.upsampler == "pixelshuffledirect":
        first, last_of_body = model.conv_first, model.conv_after_body
        _phases_at_once(model.upsample[0], kernels)
    elif isinstance(model, EDSR):
        first, last_of_body = model.head[0], model.body[-1]
        _phases_by_stages([layer for layer in model.tail[0] if isinstance(layer, nn.Conv2d)], kernels)
        _carry_colours(model.tail[1])
    else:
        raise TypeError(f"no interpolating start for {type(model).__name__}")
    _carry_colours(first)
    for parameter in last_of_body.parameters():
        parameter.zero_()


def _carry_colours(conv: nn.Conv2d) -> None:
    """Makes the first three outputs equal to the first three inputs; the other outputs stay as they are."""
    _bias(conv)[:COLOURS] = 0
    conv.weight[:COLOURS] = 0
    for colour in range(COLOURS):
        conv.weight[colour, colour, 1, 1] = 1


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise TypeError("a layer that starts as an interpolator has a bias")
    return conv.bias


def _phases_at_once(conv: nn.Conv2d, kernels: Tensor) -> None:
    """Sets one convolution before one pixel shuffle: output channel colour * scale^2 + phase."""
    phases = kernels.flatten(0, 1)
    conv.weight.zero_()
    _bias(conv).zero_()
    for colour in range(COLOURS):
        conv.weight[colour * len(phases) : (colour + 1) * len(phases), colour] = phases


def _phases_by_stages(convs: list[nn.Conv2d], kernels: Tensor) -> None:
    """Sets one or two convolutions, each before a pixel shuffle that keeps all features.

    The first convolution computes every phase. The phases that the second shuffle puts in place travel there as further
    channels, and the second convolution copies each of them to the output channel of its sub-pixel.
    """
    scale = kernels.shape[0]
    later = 2 if len(convs) == 2 else 1
    now = scale // later
    weight = torch.zeros_like(convs[0].weight)
    # Channel c of the shuffled map is colour + 3 * (phase left for later); its sub-pixel is the coarse phase.
    for row in range(scale):
        for column in range(scale):
            rest = (row % later) * later + column % later
            subpixel = (row // later) * now + column // later
            for colour in range(COLOURS):
                weight[(colour + COLOURS * rest) * now**2 + subpixel, colour] = kernels[row, column]
    convs[0].weight.copy_(weight)
    _bias(convs[0]).zero_()
    for conv in convs[1:]:
        conv.weight[: COLOURS * later**2] = 0
        _bias(conv)[: COLOURS * later**2] = 0
        for rest in range(later**2):
            for colour in range(COLOURS):
                conv.weight[colour * later**2 + rest, colour + COLOURS * rest, 1, 1] = 1
