"""Observe: statistics of the values that every activation quantizer sees, over all calibration images, in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxptq.errors import CalibrationError, InputError
from fxptq.passes.base import Context, Pass, PassReport, register
from fxptq.passes.samples import in_float
from fxptq.quant.observer import Histogram
from fxptq.ranks import Ranks

BINS = 8192
"""Number of bins of a histogram."""


@register("observe")
class Observe(Pass):
    """Runs the calibration images through the float network and fills `ctx.statistics`.

    Memory and the cost of later searches do not depend on the number of images. At the end every quantizer has its
    former mode.
    """

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            bins: number of bins of each histogram.
        """

        bins: int = BINS

        def __post_init__(self) -> None:
            if self.bins < 2:
                raise InputError(f"bins must be at least 2, not {self.bins}")

    provides: ClassVar[frozenset[str]] = frozenset({"histogram"})
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Raises:
            InputError: if there are no images.
            CalibrationError: if a tensor is not finite, or a quantizer sees no values; the message names the quantizer
                and the image.
        """
        keys = [key for key in ctx.student.quantizers if ctx.student.weight_of(key) is None]
        values = observe(ctx, keys, self.settings.bins)
        return PassReport(notes=(f"{len(keys)} activations, {values:,} values, {len(ctx.images)} images",))


def observe(ctx: Context, keys: Sequence[str], bins: int = BINS) -> int:
    """Fills `ctx.statistics` for the quantizers of some activations, as the pass does for all.

    Args:
        ctx: the student and the calibration images.
        keys: the quantizers.
        bins: number of bins of each histogram.

    Returns:
        The number of values that were seen.

    Raises:
        InputError: if there are no images.
        CalibrationError: if a tensor is not finite, or a quantizer sees no values; the message names the quantizer
            and the image.
    """
    if not ctx.images:
        raise InputError("observing needs at least one calibration image")
    ctx.install_kernels()
    student = ctx.student
    observers = {key: _Named(key, bins) for key in keys}
    with in_float(student):
        for key, observer in observers.items():
            student.quantizers[key].observer, student.quantizers[key].mode = observer, "observe"
        try:
            ctx.ranks.together(lambda: _run_all(ctx))
        finally:
            for key in observers:
                student.quantizers[key].observer = None
    _merge([observer.histogram for observer in observers.values()], ctx.ranks)
    for key, observer in observers.items():
        if observer.histogram.count == 0:
            raise CalibrationError(f"{key}: no calibration image leads through this place")
        ctx.statistics[key] = observer.histogram.distribution()
    return sum(observer.histogram.count for observer in observers.values())


@torch.no_grad()
def _run_all(ctx: Context) -> None:
    """Runs the calibration inputs of this process."""
    indices = ctx.ranks.share(range(len(ctx.images)))
    with ctx.progress.task("observe", len(indices)) as advance:
        for index in indices:
            _run_finite(ctx, index)
            advance()


def _merge(histograms: Sequence[Histogram], ranks: Ranks) -> None:
    """Gives the histograms the values that all processes have seen: bins and counts are exact, sums as `Histogram`."""
    if ranks.world == 1 or not histograms:
        return
    minima, maxima, counts = (
        torch.tensor([getattr(histogram, name) for histogram in histograms], dtype=dtype)
        for name, dtype in (("minimum", torch.float64), ("maximum", torch.float64), ("count", torch.int64))
    )
    ranks.reduce([minima], "min")
    ranks.reduce([maxima], "max")
    ranks.reduce([counts])
    for histogram, low, high, count in zip(histograms, minima.tolist(), maxima.tolist(), counts.tolist(), strict=True):
        histogram.widen(low, high, count)
    ranks.reduce([histogram.table for histogram in histograms])


def _run_finite(ctx: Context, index: int) -> None:
    """Runs one calibration input; raises CalibrationError if a value that is observed or restored is not finite."""
    try:
        output = ctx.student(*ctx.placed(ctx.images[index]))
    except CalibrationError as error:
        raise CalibrationError(f"{error} (calibration input {index})") from None
    if not bool(ctx.picture.pick(output).isfinite().all()):
        raise CalibrationError(
            f"the network makes NaN or infinite values of calibration input {index}, behind its last quantized site; "
            "calibrate on other images"
        )


class _Named:
    """A histogram whose errors name the quantizer."""

    def __init__(self, key: str, bins: int) -> None:
        self.key, self.histogram = key, Histogram(bins)

    def update(self, x: Tensor) -> None:
        try:
            self.histogram.update(x)
        except CalibrationError as error:
            raise CalibrationError(f"{self.key}: {error}") from None
