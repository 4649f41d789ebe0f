"""Refit: rounds the weights of layers by GPTQ and corrects their biases, in the order of execution.

One run over a batch of calibration inputs serves all layers: when the quantized input of a layer is there, its weight
is rounded for these very inputs and its bias makes up for the error of the output's mean, and then the layer runs. So
each layer meets the errors of all layers before it, and the second moments of one layer at a time are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, Site, register
from fxptq.passes.gptq import Rounded, round_weight
from fxptq.passes.judge import Judge, JudgedSettings, batches
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


@register("refit")
class Refit(Pass):
    """Replaces the weights of linear layers and plain convolutions by values on their grids, and corrects biases.

    Where a layer has a bias, moments are taken about the mean, because the bias makes up for the error of the mean:
    b' = b + W E[x in float] - W' E[x quantized]. The network is judged by its output on held-out inputs, and if it
    became worse, everything is taken back. The pass needs bounds that are set, and makes those of weights final.
    """

    @dataclass(frozen=True)
    class Settings(JudgedSettings):
        """Settings; see also `JudgedSettings`.

        Attributes:
            images: largest number of calibration inputs, which run as one batch.
            rows: largest number of positions, over all inputs, that are used for each layer.
            damping: added to the diagonal of the inputs' second moments, in units of its mean.
        """

        images: int = 8
        rows: int = 16384
        damping: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            if min(self.images, self.rows) < 1:
                raise InputError("images and rows must be at least 1")
            if self.damping <= 0:
                raise InputError(f"damping must be above 0, not {self.damping}")

    settings: Settings

    @torch.no_grad()
    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Returns:
            For each weight the figures of `gptq`.

        Raises:
            InputError: if there are no images, or no bounds are set.
        """
        layers = _layers(ctx)
        if not layers and not any(quantizer.mode == "on" for quantizer in ctx.student.quantizers.values()):
            raise InputError("refit rounds weights to bounds that are set: run a pass such as `dobi` before it")
        if not layers:
            return PassReport(notes=("no layer has a weight that can be rounded for its output",))
        judge = Judge.of(ctx, self.settings)
        start, figures = judge.error, dict[str, dict[str, float]]()
        batch = batches(ctx, judge.inputs[: self.settings.images])[0]
        means = self._means_in_float(ctx, layers, batch)
        keys = [layer.key for of_input in layers.values() for layer in of_input]
        kept = judge.keeps(keys, lambda: figures.update(self._refit(ctx, layers, means, batch)))
        verdict = f"{start:.3g} -> {judge.error:.3g}" if kept else f"not below {start:.3g}: taken back"
        return PassReport(
            quantizers=figures if kept else {},
            notes=(f"{len(keys)} weights; squared error of the output {verdict}",),
        )

    def _means_in_float(self, ctx: Context, layers: dict[str, list[Layer]], batch: Inputs) -> dict[str, Tensor]:
        """The mean of each layer's input vectors in float, [groups, inputs], by the key of its weight."""
        means: dict[str, Tensor] = {}

        def take(layer: Layer, x: Tensor) -> None:
            means[layer.key] = input_vectors(x, layer.site, self.settings.rows)[0].mean(1)

        with in_float(ctx.student):
            _visit(ctx, layers, batch, take)
        return means

    def _refit(
        self, ctx: Context, layers: dict[str, list[Layer]], means: dict[str, Tensor], batch: Inputs
    ) -> dict[str, dict[str, float]]:
        """Rounds and corrects all layers in the order of execution, and returns the figures of each weight."""
        figures: dict[str, dict[str, float]] = {}
        student = ctx.student

        def refit(layer: Layer, x: Tensor) -> None:
            weight, bias, key = student.weight_of(layer.key), student.bias_of(layer.key), layer.key
            assert weight is not None  # a movable weight  # noqa: S101
            vectors = input_vectors(x, layer.site, self.settings.rows)[0]
            mean = vectors.mean(1)
            if bias is not None:
                vectors = vectors - mean[:, None]
            moments = vectors.transpose(1, 2) @ vectors / vectors.shape[1]
            rounded = round_weight(weight, student.quantizers[key], moments, self.settings.damping)
            if not isinstance(rounded, Rounded):
                return
            if bias is not None:
                student.set_bias(key, bias + _outputs(weight, means[key]) - _outputs(rounded.weight, mean))
            student.set_weight(key, rounded.weight)
            figures[key] = rounded.figures

        _visit(ctx, layers, batch, refit)
        return figures


def _layers(ctx: Context) -> dict[str, list[Layer]]:
    """The layers to refit, by the quantizer of their input; no two layers have one weight."""
    movable = movable_weights(ctx.student)
    layers: dict[str, list[Layer]] = {}
    sites: dict[str, int] = {}
    for site in ctx.student.sites:
        keys = {operand.slot: operand.quantizer for operand in site.operands}
        weight = keys.get("weight", "")
        sites[weight] = sites.get(weight, 0) + 1
        if keys.get("input") and weight in movable and is_covered(site):
            layers.setdefault(keys["input"], []).append(Layer(site, weight))
    alone = {key: [layer for layer in of_input if sites[layer.key] == 1] for key, of_input in layers.items()}
    return {key: of_input for key, of_input in alone.items() if of_input}


def _visit(ctx: Context, layers: dict[str, list[Layer]], batch: Inputs, visit: Callable[[Layer, Tensor], None]) -> None:
    """Runs a batch, and calls `visit` with each layer and its input when the input is there, before the layer runs."""
    with ExitStack() as hooks:
        for key, of_input in layers.items():

            def meet(_module: object, _args: object, x: Tensor, of_input: list[Layer] = of_input) -> None:
                for layer in of_input:
                    visit(layer, x)

            hooks.callback(ctx.student.quantizers[key].register_forward_hook(meet).remove)
        ctx.student(*ctx.placed(batch))


def _outputs(weight: Tensor, inputs: Tensor) -> Tensor:
    """The outputs of a layer without bias for one input vector of each group, [groups, inputs] to [outputs]."""
    by_group = weight.double().reshape(len(inputs), -1, inputs.shape[1])
    return torch.einsum("goi,gi->go", by_group, inputs).flatten().to(weight.dtype)
