"""Layers that read one input through one quantizer, and what is kept of that input to compare maps on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxptq.passes.base import QuantizedNetwork, Site
from fxptq.passes.samples import Take, evenly
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.schemes.affine import Affine


@dataclass(frozen=True)
class Group:
    """The layers that read one input through one quantizer.

    Attributes:
        key: the quantizer of the input.
        lowest: the known floor of the input.
        layers: each layer's site, and the key of its weight's quantizer.
        scalable: whether the channels may have factors, because no other input meets the weights.
    """

    key: str
    lowest: float | None
    layers: tuple[tuple[Site, str], ...]
    scalable: bool

    @property
    def is_linear(self) -> bool:
        """Whether the channels are the last axis of the input."""
        return self.layers[0][0].kind == "linear"

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.layers[0][0].shapes["weight"][1]

    def axes(self, by_channel: Tensor) -> Tensor:
        """Numbers [C] in the shape that broadcasts to the input and to the weights."""
        return by_channel if self.is_linear else by_channel.view(-1, 1, 1)

    def vectors(self, rows: Tensor) -> Tensor:
        """Rows [n, C] as inputs of one position each."""
        return rows if self.is_linear else rows[..., None, None]


@dataclass(frozen=True)
class Sample:
    """Values of one calibration input at the input of a group.

    Attributes:
        x: rows [n, C] of a linear layer's input; a crop [B, C, h, w] out of the middle of a convolution's.
        extremes: the least and the largest value of each channel at all positions, [2, C].
    """

    x: Tensor
    extremes: Tensor


def groups_of(student: QuantizedNetwork) -> Iterator[Group]:
    """The groups of plain layers whose quantizers are affine and on."""
    readers: dict[str, list[tuple[Site, str, str, float | None]]] = {}
    inputs: dict[str, set[str]] = {}
    for site in student.sites:
        by_slot = {operand.slot: operand.quantizer for operand in site.operands}
        weight = by_slot.get("weight", "")
        inputs.setdefault(weight, set()).add(by_slot.get("input", ""))
        for operand in site.operands:
            readers.setdefault(operand.quantizer, []).append((site, operand.slot, weight, operand.lowest))
    for key, reads in readers.items():
        layers = {(site.kind, site.geometry, weight): (site, weight) for site, _, weight, _ in reads}.values()
        keys = [key, *(weight for _, weight in layers)]
        one_layout = len({site.kind == "linear" for site, _ in layers}) == 1
        plain = all(slot == "input" and _is_plain(site) for site, slot, _, _ in reads)
        plain = plain and all(student.weight_of(weight) is not None for _, weight in layers)  # none is computed
        affine = all(_is_affine(student.quantizers.get(each)) for each in keys)
        if plain and one_layout and affine:
            yield Group(key, reads[0][3], tuple(layers), all(len(inputs[weight]) == 1 for _, weight in layers))


def _is_plain(site: Site) -> bool:
    """Whether the layer multiplies every input channel with the same axis of its weight, in one group."""
    weight = site.shapes.get("weight", ())
    if site.geometry is None:
        return site.kind == "linear" and len(weight) == 2 and weight[1] == site.shapes["input"][-1]
    return len(weight) == 4 and site.geometry.groups == 1 and not site.geometry.transposed


def _is_affine(quantizer: Quantizer | None) -> bool:
    return isinstance(quantizer, Affine) and quantizer.mode == "on"


def take_of(group: Group, rows: int) -> Take[Sample]:
    """What is kept of each input.

    Args:
        group: the layers.
        rows: about so many positions of an input.
    """
    extremes = extremes_of(group)
    if group.is_linear:

        def take_rows(x: Tensor) -> Sample:
            return Sample(evenly(x.reshape(-1, x.shape[-1]), rows).cpu(), extremes(x))

        return take_rows
    rim = max(max(_spans(site)) for site, _ in group.layers) - 1
    side = int(rows**0.5) + rim

    def take_crop(x: Tensor) -> Sample:
        x = x if x.dim() == 4 else x[None]
        top, left = ((size - min(size, side)) // 2 for size in x.shape[-2:])
        return Sample(x[..., top : top + side, left : left + side].clone().cpu(), extremes(x))

    return take_crop


def extremes_of(group: Group) -> Take[Tensor]:
    """The least and the largest value of each channel of an input, [2, C]."""
    axis = -1 if group.is_linear else -3

    def take_extremes(x: Tensor) -> Tensor:
        return torch.stack(x.movedim(axis, -1).reshape(-1, x.shape[axis]).aminmax(dim=0)).cpu()

    return take_extremes


def _spans(site: Site) -> list[int]:
    """Height and width of the input that one output of a convolution sees."""
    assert site.geometry is not None  # a convolution  # noqa: S101
    kernel = site.shapes["weight"][2:]
    return [step * (side - 1) + 1 for step, side in zip(site.geometry.dilation, kernel, strict=True)]


def output_of(site: Site, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's output without bias, [positions, outputs] or [B, outputs, h, w]; crops of pictures get no padding."""
    geometry = site.geometry
    if geometry is None:
        return x @ weight.T
    if all(size >= span for size, span in zip(x.shape[-2:], _spans(site), strict=True)):
        geometry = replace(geometry, padding=(0, 0), trailing=(0, 0))
    return geometry.apply(x, weight, 1)
