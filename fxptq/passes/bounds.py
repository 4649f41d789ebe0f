"""The common part of the passes that set bounds: search each quantizer on its own distribution, and switch it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxptq.errors import CalibrationError
from fxptq.passes.base import Context, Operand, PassReport
from fxptq.quant.distribution import Distribution, signal_to_noise
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.search import Bounds
from fxptq.quant.sketch import Sketch

Search = Callable[[Distribution, Quantizer, Operand], Bounds]
"""Finds bounds for a distribution, given the quantizer of these values and its operand."""


def set_all_bounds(ctx: Context, description: str, search: Search) -> PassReport:
    """Set the bounds of all quantizers of the student and switch them on.

    Weights are searched on their exact values, range by range; activations on `ctx.statistics`.

    Returns:
        For each quantizer the `lower` and `upper` bound (the extremes over its ranges), the mean squared `error`, and
        `snr_db`, the signal-to-noise ratio in dB; and a sketch of the values.

    Raises:
        CalibrationError: if an activation has no statistics, or a weight is not finite; the quantizer is named.
    """
    return set_bounds(ctx, tuple(ctx.student.quantizers), description, search)


def set_bounds(ctx: Context, keys: Sequence[str], description: str, search: Search) -> PassReport:
    """Set the bounds of the quantizers of these keys, as `set_all_bounds` does for all."""
    student, operands = ctx.student, ctx.student.operands()
    ctx.install_kernels()

    def search_share() -> dict[str, tuple[Bounds, dict[str, float], Sketch]]:
        own = ctx.ranks.share(list(keys))
        with ctx.progress.task(description, len(own)) as advance:
            found = {}
            for key in own:
                quantizer = student.quantizers[key]
                try:
                    values = values_of(ctx, key)
                    bounds = search(values, quantizer, operands[key])
                except CalibrationError as error:
                    raise CalibrationError(f"{key}: {error}") from None
                found[key] = bounds, _figures(bounds, values), Sketch.of(values)
                advance()
        return found

    found = ctx.ranks.exchange(ctx.ranks.together(search_share))
    figures: dict[str, dict[str, float]] = {}
    sketches: dict[str, Sketch] = {}
    for key in keys:
        quantizer = student.quantizers[key]
        bounds, figures[key], sketches[key] = found[key]
        try:
            quantizer.set_bounds(bounds.lower, bounds.upper)
        except CalibrationError as error:
            raise CalibrationError(f"{key}: {error}") from None
        quantizer.mode = "on"
    return PassReport(quantizers=figures, sketches=sketches)


def _figures(bounds: Bounds, values: Distribution) -> dict[str, float]:
    mse = float(bounds.error.mean())
    return {
        "lower": float(bounds.lower.min()),
        "upper": float(bounds.upper.max()),
        "error": mse,
        "snr_db": signal_to_noise(float(values.power.mean()), mse),
    }


def values_of(ctx: Context, key: str) -> Distribution:
    """The values that a quantizer sees, in the unit of its bounds: exactly those of a weight, or `ctx.statistics`.

    Raises:
        CalibrationError: an activation was not observed, or a weight is not finite.
    """
    quantizer, weight = ctx.student.quantizers[key], ctx.student.weight_of(key)
    if weight is not None:
        return Distribution.of(quantizer.normalize(weight), quantizer.ranges, quantizer.axis)
    if key not in ctx.statistics:
        raise CalibrationError("nothing was observed here; run `observe` first")
    return ctx.statistics[key]
