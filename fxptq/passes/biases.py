"""Biases: corrects the bias of each layer for the error that quantization makes in the mean of its outputs.

A pixel shuffle makes each sub-pixel phase of the picture by channels of its own. Errors of their means are a regular
mesh in smooth areas, and errors of the means of the last layer are a shift of colours. Both vanish when each bias makes
up for the error of its output's mean. Layers are corrected in the order of execution, each for the inputs that the
layers before it give it by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, QuantizedNetwork, register
from fxptq.passes.judge import Judge, JudgedSettings, batches
from fxptq.passes.layers import Layer, Layers, layers_of, outputs, visit
from fxptq.passes.moments import input_vectors
from fxptq.passes.samples import in_float


@register("biases")
class Biases(Pass):
    """Sets b' = b + W E[x in float] - W' E[x quantized], with the weight W and bias b of the float network.

    It belongs behind all passes that change weights or bounds. Linear layers and plain convolutions with a bias of
    their own are corrected; if the output on held-out inputs became worse, all biases are taken back.
    """

    @dataclass(frozen=True)
    class Settings(JudgedSettings):
        """Settings; see also `JudgedSettings`.

        Attributes:
            images: largest number of calibration inputs, which run as one batch.
            rows: largest number of positions, over all inputs, that the means of a layer are taken over.
        """

        images: int = 8
        rows: int = 65536

        def __post_init__(self) -> None:
            super().__post_init__()
            if min(self.images, self.rows) < 1:
                raise InputError("images and rows must be at least 1")

    settings: Settings

    @torch.no_grad()
    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Returns:
            For each corrected weight's quantizer the largest change of its bias, as `bias_change`.

        Raises:
            InputError: if there are no images, or no bounds are set.
        """
        student = ctx.student
        layers = {
            key: with_bias
            for key, of_input in layers_of(student).items()
            if (with_bias := [layer for layer in of_input if student.bias_of(layer.key) is not None])
        }
        if not layers:
            return PassReport(notes=("no quantized layer has a bias that can be set",))
        judge = Judge.of(ctx, self.settings)
        start, figures = judge.error, dict[str, dict[str, float]]()
        batch = batches(ctx, judge.inputs[: self.settings.images])[0]
        keys = [layer.key for of_input in layers.values() for layer in of_input]
        wanted = self._means_wanted(ctx, layers, batch)
        kept = judge.keeps(keys, lambda: figures.update(self._correct(ctx, layers, wanted, batch)))
        verdict = f"{start:.3g} -> {judge.error:.3g}" if kept else f"not below {start:.3g}: taken back"
        return PassReport(
            quantizers=figures if kept else {},
            notes=(f"{len(keys)} biases; squared error of the output {verdict}",),
        )

    def _means_wanted(self, ctx: Context, layers: Layers, batch: Inputs) -> dict[str, Tensor]:
        """The mean outputs of each layer in the float network, bias included, by the key of its weight."""
        means: dict[str, Tensor] = {}

        def take(layer: Layer, x: Tensor) -> None:
            weight, bias = ctx.student.weight_of(layer.key), ctx.student.bias_of(layer.key)
            assert weight is not None  # a layer with a weight and a bias  # noqa: S101
            assert bias is not None  # noqa: S101
            means[layer.key] = outputs(weight, self._mean(layer, x)) + bias

        with _float_tensors(ctx, [layer.key for of_input in layers.values() for layer in of_input]):
            visit(ctx, layers, batch, take)
        return means

    def _correct(
        self, ctx: Context, layers: Layers, wanted: dict[str, Tensor], batch: Inputs
    ) -> dict[str, dict[str, float]]:
        """Corrects all layers in the order of execution."""
        student, figures = ctx.student, dict[str, dict[str, float]]()

        def correct(layer: Layer, x: Tensor) -> None:
            weight, bias = student.weight_of(layer.key), student.bias_of(layer.key)
            assert weight is not None  # a layer with a weight and a bias  # noqa: S101
            assert bias is not None  # noqa: S101
            rounded = student.quantizers[layer.key].quantize(weight)
            corrected = wanted[layer.key] - outputs(rounded, self._mean(layer, x))
            figures[layer.key] = {"bias_change": float((corrected - bias).abs().max())}
            student.set_bias(layer.key, corrected)

        visit(ctx, layers, batch, correct)
        return figures

    def _mean(self, layer: Layer, x: Tensor) -> Tensor:
        """The mean of a layer's input vectors, [groups, inputs]."""
        return input_vectors(x, layer.site, self.settings.rows)[0].mean(1)


@contextmanager
def _float_tensors(ctx: Context, keys: list[str]) -> Iterator[None]:
    """Within, the student is in float and the layers of these keys have the teacher's weights and biases."""
    student: QuantizedNetwork = ctx.student
    weights = {key: weight.clone() for key in keys if (weight := student.weight_of(key)) is not None}
    biases = {key: bias.clone() for key in keys if (bias := student.bias_of(key)) is not None}
    try:
        for key in keys:
            weight, bias = student.tensors_in(ctx.teacher, key)
            student.set_weight(key, weight)
            if bias is not None:
                student.set_bias(key, bias)
        with in_float(student):
            yield
    finally:
        for key, weight in weights.items():
            student.set_weight(key, weight)
        for key, bias in biases.items():
            student.set_bias(key, bias)
