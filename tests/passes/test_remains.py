"""What is left of a weight's error after rounding for its layer's output, against the rounding itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxptq.passes.base import Context, run_passes
from fxptq.passes.bounds import values_of
from fxptq.passes.remains import remains
from fxptq.passes.widths import bounds_by_width
from fxptq.quant.search import Bounds


def bounds(ctx: Context, *keys: str) -> dict[str, dict[int, Bounds]]:
    """The best bounds of weights at each width."""
    return {key: bounds_by_width(values_of(ctx, key), ctx.student.quantizers[key], 100) for key in keys}


def bounded(new_context: Callable[..., Context]) -> Context:
    """A context with bounds of 4 bits."""
    ctx = new_context(4)
    run_passes([("dobi", {})], ctx)
    return ctx


def mixed(ctx: Context, x: Tensor) -> Tensor:
    """The values that the linear layer makes of its quantized inputs."""
    weight = ctx.student.weight_of("mix.weight")
    assert weight is not None
    return torch.nn.functional.linear(x, ctx.student.quantizers["mix.weight"](weight))


@torch.no_grad()
def test_the_part_is_what_refit_leaves_of_the_output_error(new_context: Callable[..., Context]) -> None:
    ctx = bounded(new_context)
    image = ctx.images[0]
    ctx.images[:] = [image]
    before = {key: quantizer.lower.clone() for key, quantizer in ctx.student.quantizers.items()}
    own = ctx.student.quantizers["mix.weight"]
    by_width = bounds(ctx, "mix.weight")
    by_width["mix.weight"][own.bits] = Bounds(own.lower.detach(), own.upper.detach(), torch.zeros(1))
    found = remains(ctx, [image], by_width)
    assert found.keys() == {"mix.weight"}
    parts = found["mix.weight"]
    assert parts.keys() == {2, 4}
    assert parts[2] > parts[4]
    assert all(torch.equal(ctx.student.quantizers[key].lower, lower) for key, lower in before.items())

    seen: list[Tensor] = []
    hook = ctx.student.quantizers["mix.input"].register_forward_hook(lambda _m, _a, x: seen.append(x))
    ctx.student(image)
    hook.remove()
    own.mode = "off"
    wanted = mixed(ctx, seen[0])
    own.mode = "on"
    nearest = (mixed(ctx, seen[0]) - wanted).square().mean()
    run_passes([("moments", {"rows": 10**6}), ("gptq", {})], ctx)
    left = (mixed(ctx, seen[0]) - wanted).square().mean()
    assert parts[own.bits] < 0.9
    assert parts[own.bits] == pytest.approx(float(left / nearest), rel=0.15)  # of other positions


def test_less_is_left_where_a_bias_corrects_the_mean(
    new_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = bounded(new_context)
    of_mix = bounds(ctx, "mix.weight")
    without = remains(ctx, ctx.images, of_mix)["mix.weight"]
    monkeypatch.setattr(type(ctx.student), "bias_of", lambda _network, _key: torch.zeros(3))
    with_bias = remains(ctx, ctx.images, of_mix)["mix.weight"]
    assert all(with_bias[bits] < without[bits] for bits in without)


def test_layers_with_like_inputs_keep_less_than_layers_with_independent_ones(
    new_context: Callable[..., Context],
) -> None:
    ctx = bounded(new_context)
    flat = [torch.full_like(item, 0.4) for item in ctx.images if isinstance(item, Tensor)]
    noise = [torch.rand_like(item) for item in flat]
    of_flat, of_noise = (remains(ctx, inputs, bounds(ctx, "conv.weight"))["conv.weight"][4] for inputs in (flat, noise))
    assert of_flat < 0.25 * of_noise


def test_other_weights_are_left_out(new_context: Callable[..., Context]) -> None:
    ctx = bounded(new_context)
    assert remains(ctx, ctx.images, {}) == {}
    assert remains(ctx, ctx.images, bounds(ctx, "mix.input")) == {}
