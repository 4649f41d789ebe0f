"""Layers met in the order of execution, and the means of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.passes.base import Context, QuantizedNetwork, Site
from fxptq.passes.moments import input_vectors, is_covered
from fxptq.passes.offsets import movable_weights
from fxptq.passes.samples import in_float


@dataclass(frozen=True)
class Layer:
    """A layer whose weight may change.

    Attributes:
        site: its site.
        key: the quantizer of its weight.
    """

    site: Site
    key: str


Layers = Mapping[str, Sequence[Layer]]
"""The layers that read each input, by the input's quantizer."""


def layers_of(student: QuantizedNetwork) -> Layers:
    """The linear layers and plain convolutions whose weights may change; no two of them have one weight."""
    movable = movable_weights(student)
    layers: dict[str, list[Layer]] = {}
    sites: dict[str, int] = {}
    for site in student.sites:
        keys = {operand.slot: operand.quantizer for operand in site.operands}
        weight = keys.get("weight", "")
        sites[weight] = sites.get(weight, 0) + 1
        if keys.get("input") and weight in movable and is_covered(site):
            layers.setdefault(keys["input"], []).append(Layer(site, weight))
    alone = {key: [layer for layer in of_input if sites[layer.key] == 1] for key, of_input in layers.items()}
    return {key: of_input for key, of_input in alone.items() if of_input}


def visit(ctx: Context, layers: Layers, batch: Inputs, meet: Callable[[Layer, Tensor], None]) -> None:
    """Runs a batch, and calls `meet` with each layer and its input when the input is there, before the layer runs."""
    with ExitStack() as hooks:
        for key, of_input in layers.items():

            def pass_on(_module: object, _args: object, x: Tensor, of_input: Sequence[Layer] = of_input) -> None:
                for layer in of_input:
                    meet(layer, x)

            hooks.callback(ctx.student.quantizers[key].register_forward_hook(pass_on).remove)
        ctx.student(*ctx.placed(batch))


def means_in_float(ctx: Context, layers: Layers, batch: Inputs, rows: int) -> dict[str, Tensor]:
    """The mean of each layer's input vectors in float, [groups, inputs], by the key of its weight.

    Args:
        ctx: the student.
        layers: the layers.
        batch: an input of the network.
        rows: largest number of positions that are used for each layer.
    """
    means: dict[str, Tensor] = {}

    def take(layer: Layer, x: Tensor) -> None:
        means[layer.key] = input_vectors(x, layer.site, rows)[0].mean(1)

    with in_float(ctx.student):
        visit(ctx, layers, batch, take)
    return means


def moments_about(center: Tensor, vectors: Tensor) -> Tensor:
    """The second moments E (x - c)(x - c)^T of a layer's inputs.

    Args:
        center: c, [groups, inputs].
        vectors: x, [groups, positions, inputs], float64; the center is taken from them in place.

    Returns:
        [groups, inputs, inputs].
    """
    vectors -= center[:, None]
    return vectors.transpose(1, 2) @ vectors / vectors.shape[1]


def outputs(weight: Tensor, inputs: Tensor) -> Tensor:
    """The outputs of a layer without bias for one input vector of each group, [groups, inputs] to [outputs]."""
    by_group = weight.double().reshape(len(inputs), -1, inputs.shape[1])
    return torch.einsum("goi,gi->go", by_group, inputs).flatten().to(weight.dtype)
