"""Sensitivity: the error of the network's output that one operand makes when it alone is quantized.

With the error d of an operand and the Jacobian J of the output, that error is |J d|^2 as long as errors are small. For
a random output direction v of signs, (v^T J d)^2 has this mean. One backward pass gives v^T J for every operand, so a
few passes estimate the sensitivities of all operands; one at a time, each takes a run of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.passes.base import Context, QuantizedNetwork
from fxptq.passes.samples import in_float
from fxptq.quant.quantizer import Quantizer


@torch.enable_grad()
def estimate(ctx: Context, batches: Sequence[Inputs], draws: int = 8) -> dict[str, float]:
    """Estimates the sensitivity of every operand from gradients at the float network.

    Errors of different pictures of a batch, and of different outputs of a weight, are taken as uncorrelated.

    Args:
        ctx: the student, with bounds that are set.
        batches: calibration inputs, which may be batches.
        draws: number of random output directions for each batch.

    Returns:
        By quantizer key, the mean squared error of the output in the square of its unit; 0 where no gradient arrives.
    """
    generator = torch.Generator().manual_seed(ctx.seed)
    sums = dict.fromkeys(ctx.student.quantizers, 0.0)
    values = 0
    with ctx.progress.task("sensitivity", len(batches) * draws) as advance:
        for batch in batches:
            inputs = ctx.placed(batch)
            with in_float(ctx.student), _probes(ctx.student, len(inputs[0]), sums) as leaves:
                picture = ctx.picture.pick(ctx.student(*inputs))
                values += picture.numel() * draws
                for draw in range(draws):
                    if picture.requires_grad:
                        signs = torch.randint(2, picture.shape, generator=generator).to(picture) * 2 - 1
                        last = draw == draws - 1
                        torch.autograd.grad(picture, leaves, signs, retain_graph=not last, allow_unused=True)
                    advance()
    return {key: total / max(values, 1) for key, total in sums.items()}


@torch.no_grad()
def measure(ctx: Context, batches: Sequence[Inputs], keys: Iterable[str]) -> dict[str, float]:
    """Measures the sensitivity of operands exactly, one at a time; each takes a run over the inputs.

    Args:
        ctx: the student, with bounds that are set.
        batches: calibration inputs, which may be batches.
        keys: the quantizers to measure.

    Returns:
        By key, the mean squared error of the output when that quantizer alone is on.
    """
    keys, student, found = tuple(keys), ctx.student, dict[str, float]()
    placed = [ctx.placed(batch) for batch in batches]
    with in_float(student), ctx.progress.task("one operand at a time", len(keys)) as advance:
        pictures = [ctx.picture.pick(student(*batch)) for batch in placed]
        values = sum(picture.numel() for picture in pictures)
        for key in keys:
            student.quantizers[key].mode = "on"
            found[key] = sum(
                float((ctx.picture.pick(student(*batch)) - picture).double().square().sum())
                for batch, picture in zip(placed, pictures, strict=True)
            ) / max(values, 1)
            student.quantizers[key].mode = "off"
            advance()
    return found


class _Probe(torch.autograd.Function):
    """The identity; its backward pass adds (gradient . error)^2, in parts of the tensor, to a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Tensor, parts: int, sums: dict[str, float], key: str) -> Tensor:
        ctx.save_for_backward(error)
        ctx.parts, ctx.sums, ctx.key = parts, sums, key
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        by_part = (grad * error).reshape(ctx.parts, -1).double().sum(1)
        ctx.sums[ctx.key] += float(by_part.square().sum())
        return grad, None, None, None, None


@contextmanager
def _probes(student: QuantizedNetwork, pictures: int, sums: dict[str, float]) -> Iterator[list[Tensor]]:
    """Within, quantizers that are off pass their values through a probe; yields the leaves that gradients are for."""
    leaves: list[Tensor] = []
    with ExitStack() as hooks:
        for key, quantizer in student.quantizers.items():
            is_weight = student.weight_of(key) is not None

            def probe(
                module: Quantizer, _args: object, x: Tensor, key: str = key, is_weight: bool = is_weight
            ) -> Tensor:
                with torch.no_grad():
                    error = module.quantize(x) - x
                if not x.requires_grad:
                    x = x.detach().requires_grad_()
                    leaves.append(x)
                wanted = x.shape[module.axis] if is_weight else pictures
                moved = error.movedim(module.axis, 0) if is_weight else error
                parts = wanted if len(moved) % wanted == 0 else 1
                out: Tensor = _Probe.apply(x, error, parts, sums, key)  # type: ignore[no-untyped-call]  # torch's own
                return out

            hooks.callback(quantizer.register_forward_hook(probe).remove)
        yield leaves
