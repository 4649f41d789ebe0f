"""Refit: rounds the weights of layers by GPTQ and corrects their biases, in the order of execution.

One run over a batch of calibration inputs serves all layers: when the quantized input of a layer is there, its weight
is rounded for these very inputs and its bias makes up for the error of the output's mean, and then the layer runs. So
each layer meets the errors of all layers before it, and the second moments of one layer at a time are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, register
from fxptq.passes.judge import Judge, JudgedSettings, batches
from fxptq.passes.layers import Layer, layers_of, means_in_float, moments_about, outputs, visit
from fxptq.passes.moments import input_vectors
from fxptq.quant.rounded import Rounded, round_weight
from fxptq.quant.rounding import DAMPING


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
        damping: float = DAMPING

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
        layers = layers_of(ctx.student)
        if not layers and not any(quantizer.mode == "on" for quantizer in ctx.student.quantizers.values()):
            raise InputError("refit rounds weights to bounds that are set: run a pass such as `dobi` before it")
        if not layers:
            return PassReport(notes=("no layer has a weight that can be rounded for its output",))
        judge = Judge.of(ctx, self.settings)
        start, figures = judge.error, dict[str, dict[str, float]]()
        batch = batches(ctx, judge.inputs[: self.settings.images])[0]
        rows, damping = self.settings.rows, self.settings.damping
        keys = [layer.key for of_input in layers.values() for layer in of_input]
        kept = judge.keeps(keys, lambda: figures.update(round_in_order(ctx, batch, rows, damping)))
        verdict = f"{start:.3g} -> {judge.error:.3g}" if kept else f"not below {start:.3g}: taken back"
        return PassReport(
            quantizers=figures if kept else {},
            notes=(f"{len(keys)} weights; squared error of the output {verdict}",),
        )


@torch.no_grad()
def round_in_order(ctx: Context, batch: Inputs, rows: int, damping: float = DAMPING) -> dict[str, dict[str, float]]:
    """Rounds the weights and corrects the biases of all layers in the order of execution, and judges nothing.

    Args:
        ctx: the student, with bounds that are set.
        batch: an input of the network, or several as one batch.
        rows: largest number of positions that are used for each layer.
        damping: added to the diagonal of the inputs' second moments, in units of its mean.

    Returns:
        The figures of each weight, by the key of its quantizer.
    """
    figures: dict[str, dict[str, float]] = {}
    student, layers = ctx.student, layers_of(ctx.student)
    means = means_in_float(ctx, layers, batch, rows)

    def refit(layer: Layer, x: Tensor) -> None:
        weight, bias, key = student.weight_of(layer.key), student.bias_of(layer.key), layer.key
        assert weight is not None  # a movable weight  # noqa: S101
        vectors = input_vectors(x, layer.site, rows)[0]
        mean = vectors.mean(1)
        moments = moments_about(mean if bias is not None else torch.zeros_like(mean), vectors)
        rounded = round_weight(weight, student.quantizers[key], moments, damping)
        if not isinstance(rounded, Rounded):
            return
        if bias is not None:
            student.set_bias(key, bias + outputs(weight, means[key]) - outputs(rounded.weight, mean))
        student.quantizers[key].restore(rounded.bounds)
        student.set_weight(key, rounded.weight)
        figures[key] = rounded.figures

    visit(ctx, layers, batch, refit)
    return figures
