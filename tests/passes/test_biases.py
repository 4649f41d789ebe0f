"""Biases against means computed by hand, and the quality gate on faults that were put in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxptq.evaluate.artifacts import mesh
from fxptq.graph import Bits, Plan, Program
from fxptq.passes.base import Context, PassReport, run_passes
from fxptq.passes.gate import check_quality
from tests.tiny import inputs


class Shuffled(nn.Module):
    """Two convolutions, and a pixel shuffle behind the second."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.pixel_shuffle(self.up(torch.relu(self.head(x))), 2)


def context(model: nn.Module | None = None, bits: int = 3, images: int = 8) -> Context:
    pictures = list(inputs(images, 24).split(1))
    model = model or Shuffled()
    student = Program(model, pictures[0], Plan(Bits(bits, bits), edges=None))
    ctx = Context(student, Program(model, pictures[0], twin=student), pictures)
    run_passes([("observe", {}), ("dobi2d", {"k": 30})], ctx)
    return ctx


def corrected(ctx: Context) -> PassReport:
    return run_passes([("biases", {})], ctx)[-1]


@torch.no_grad()
def pair(ctx: Context) -> tuple[np.ndarray, np.ndarray]:
    """The student's and the teacher's pictures of all inputs, [N, H, W, C] in levels."""
    x = torch.cat([image for image in ctx.images if isinstance(image, Tensor)])
    a, b = (network(x).permute(0, 2, 3, 1).double().numpy() * 255 for network in (ctx.student, ctx.teacher))
    return a, b


def test_corrected_biases_take_the_mesh_of_a_pixel_shuffle_away() -> None:
    ctx = context()
    before, error = mesh(*pair(ctx), 2), float(np.square(np.subtract(*pair(ctx))).mean())
    report = corrected(ctx)
    after = mesh(*pair(ctx), 2)
    assert before > 3
    assert after < before / 4
    assert float(np.square(np.subtract(*pair(ctx))).mean()) < error
    assert set(report.quantizers) == {"head.weight", "up.weight"}


def test_the_mean_of_each_output_channel_becomes_that_of_the_float_network() -> None:
    ctx = context(images=2)  # one input to correct by, one to judge by
    captured: dict[str, Tensor] = {}
    corrected(ctx)
    from fxptq.passes.judge import Judge  # noqa: PLC0415  # the input that was not held out

    (x,) = Judge(ctx, 0.25).inputs
    with torch.no_grad():
        captured = {"student": ctx.student(x), "teacher": ctx.teacher(x)}
    means = {name: torch.pixel_unshuffle(y, 2).mean((0, 2, 3)) for name, y in captured.items()}
    assert torch.allclose(means["student"], means["teacher"], atol=1e-5)


def test_biases_of_rounded_weights_are_measured_by_the_float_weights() -> None:
    ctx = context()
    with torch.no_grad():
        for key, quantizer in ctx.student.quantizers.items():
            weight = ctx.student.weight_of(key)
            if weight is not None:  # as rounding passes leave them
                ctx.student.set_weight(key, quantizer(weight))
    before = mesh(*pair(ctx), 2)
    kept = {key: weight.clone() for key in ctx.student.quantizers if (weight := ctx.student.weight_of(key)) is not None}
    corrected(ctx)
    assert mesh(*pair(ctx), 2) < before / 4
    assert all(torch.equal(weight, ctx.student.weight_of(key)) for key, weight in kept.items())


def test_a_correction_that_makes_the_output_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    before = {key: bias.clone() for key in ctx.student.quantizers if (bias := ctx.student.bias_of(key)) is not None}
    monkeypatch.setattr("fxptq.passes.biases.outputs", lambda weight, _mean: torch.zeros(len(weight)))
    monkeypatch.setattr(Program, "tensors_in", lambda program, _twin, key: (program.weight_of(key), before[key] + 1))
    report = corrected(ctx)
    assert report.notes[0].endswith("taken back")
    assert report.quantizers == {}
    assert before
    assert all(torch.equal(bias, ctx.student.bias_of(key)) for key, bias in before.items())


def test_a_network_without_biases_is_left_alone() -> None:
    class Plain(Shuffled):
        def __init__(self) -> None:
            super().__init__()
            self.head.bias = self.up.bias = None

    assert corrected(context(Plain())).notes == ("no quantized layer has a bias that can be set",)


def spoiled(ctx: Context, change: Callable[[Tensor], Tensor]) -> PassReport:
    """The verdict on a network whose last bias was changed."""
    bias = ctx.student.bias_of("up.weight")
    assert bias is not None
    ctx.student.set_bias("up.weight", change(bias.clone()))
    return check_quality(ctx, 1.0)


def test_a_good_network_passes_the_gate() -> None:
    ctx = context(bits=8)
    report = check_quality(ctx, 1.0)
    assert report.warnings == ()
    assert set(report.figures) == {"colour_shift", "mesh", "beyond", "banding"}
    assert report.figures["mesh"] < 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda bias: bias + torch.tensor([0.02, 0, 0]).repeat_interleave(4), "colour shift: channel 0 is off by +5"),
        (lambda bias: bias + torch.tensor([0.01, -0.01, 0.01, -0.01]).repeat(3), "mesh: mean errors of the 2x2"),
        (lambda bias: bias + 0.5, "range: values reach"),
    ],
    ids=["colour", "mesh", "range"],
)
def test_a_fault_is_named_with_what_to_do(change: Callable[[Tensor], Tensor], name: str) -> None:
    report = spoiled(context(bits=8), change)
    (warning,) = [warning for warning in report.warnings if warning.startswith(name)]
    assert "; " in warning


def test_an_operand_whose_error_exploded_is_named() -> None:
    ctx = context(bits=8)
    ctx.student.quantizers["up.input"].set_bounds(0.0, 1e-3)
    warning = next(warning for warning in check_quality(ctx, 1.0).warnings if warning.startswith("up.input: "))
    assert "--site 'up=W8A8'" in warning


def test_a_gradient_in_bands_is_named() -> None:
    ctx = context(bits=8)
    ctx.student.set_bits({"head.input": 2})
    assert any(warning.startswith("banding: a gradient has steps of") for warning in check_quality(ctx, 1.0).warnings)
