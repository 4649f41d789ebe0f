"""Moments: E x x^T of the inputs x that each layer's weight multiplies, over all calibration images, in the student."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.graph.geometry import Geometry
from fxptq.passes.base import Context, Pass, PassReport, QuantizedNetwork, Site, register
from fxptq.passes.samples import in_memory
from fxptq.passes.shelf import Shelf
from fxptq.progress import Advance
from fxptq.ranks import Ranks

_ALL = 1 << 62
"""More bytes than the moments of any network take."""


@register("moments")
class Moments(Pass):
    """Runs the calibration images through the student and fills `ctx.moments` for weights whose rows make one output.

    Linear layers and convolutions have such weights, and transposed convolutions do not. Inputs are the outputs of
    their quantizers, so they are quantized if the quantizers are on. Where `ctx.memory` is too small for all moments,
    the images run once for each group of layers that fits, and finished moments lie on disk. The pass skips layers
    whose input has no quantizer, and convolutions whose network computes a stride, padding or dilation from sizes.
    """

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            rows: largest number of positions of an image that are used for each layer, evenly spread.
        """

        rows: int = 2048

        def __post_init__(self) -> None:
            if self.rows < 1:
                raise InputError(f"rows must be at least 1, not {self.rows}")

    provides: ClassVar[frozenset[str]] = frozenset({"moments"})
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Raises:
            InputError: if there are no images.
        """
        if not ctx.images:
            raise InputError("moments need at least one calibration image")
        images = ctx.ranks.share(ctx.images)
        readers = _readers(ctx.student)
        groups = list(in_memory(list(readers.values()), lambda sites: max(map(_nbytes, sites)), ctx.memory or _ALL))
        if len(groups) > 1:
            shelf = Shelf()
            shelf.update(ctx.moments)
            ctx.moments = shelf
        weights = 0
        with ctx.progress.task("moments", len(groups) * len(images)) as advance:
            for group in groups:
                sums = self._sums(ctx, [site for sites in group for site in sites], images, advance)
                _merge(sums, ctx.ranks)
                ctx.moments.update(sums)
                weights += len(sums)
        runs = f" in {len(groups)} runs" if len(groups) > 1 else ""
        return PassReport(notes=(f"{weights} weights, {len(ctx.images)} images{runs}",))

    @torch.no_grad()
    def _sums(
        self, ctx: Context, sites: Sequence[Site], images: Sequence[Inputs], advance: Advance
    ) -> dict[str, Tensor]:
        """The sums of the weights of these sites over images."""
        sums: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for site in sites:
                hooks.callback(self._watch(ctx, site, sums).remove)
            for image in images:
                ctx.student(*ctx.placed(image))
                advance()
        return sums

    def _watch(self, ctx: Context, site: Site, sums: dict[str, Tensor]) -> RemovableHandle:
        """Adds up the moments of a site's weight whenever its input is there."""
        source, weight = _keys(site)

        def take(_module: object, _inputs: object, x: Tensor) -> None:
            moments = _second_moments(x.detach(), site, self.settings.rows)
            sums[weight] = _added(sums.get(weight), moments)

        return ctx.student.quantizers[source].register_forward_hook(take)


def _readers(student: QuantizedNetwork) -> dict[str, list[Site]]:
    """The covered sites that read each weight with a quantizer and have one on their input."""
    readers: dict[str, list[Site]] = {}
    for site in student.sites:
        source, weight = _keys(site)
        if source and weight and is_covered(site):
            readers.setdefault(weight, []).append(site)
    return readers


def _keys(site: Site) -> tuple[str, str]:
    """The quantizers of a site's input and weight; empty where there is none."""
    keys = {operand.slot: operand.quantizer for operand in site.operands}
    return keys.get("input", ""), keys.get("weight", "")


def _nbytes(site: Site) -> int:
    """The memory of the moments of a site's weight, and of their sum with those of one input."""
    groups = 1 if site.geometry is None else site.geometry.groups
    return 2 * 8 * groups * prod(site.shapes["weight"][1:]) ** 2


def _merge(sums: dict[str, Tensor], ranks: Ranks) -> None:
    """Adds up the sums of all processes; a process without inputs has none."""
    if ranks.world == 1:
        return
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ranks.gather({key: tuple(total.shape) for key, total in sums.items()}):
        for key, (groups, *rest) in part.items():
            shapes[key] = (lcm(groups, shapes.get(key, (1,))[0]), *rest)
    for key, shape in shapes.items():
        sums[key] = _added(torch.zeros(shape, dtype=torch.float64), sums.get(key, torch.zeros(shape).double()))
        ranks.reduce([sums[key]])


def is_covered(site: Site) -> bool:
    """Whether each row of the weight makes one output, as in linear layers and plain convolutions."""
    if site.geometry is None:
        return len(site.shapes.get("weight", ())) == 2 and site.shapes["weight"][1] == site.shapes["input"][-1]
    return not site.geometry.transposed


def _second_moments(x: Tensor, site: Site, rows: int) -> Tensor:
    """Sum of x x^T over positions, [groups, inputs, inputs] with the groups of a grouped convolution."""
    vectors, step = input_vectors(x, site, rows)
    return (vectors.transpose(1, 2) @ vectors * step).cpu()


def input_vectors(x: Tensor, site: Site, rows: int) -> tuple[Tensor, int]:
    """The vectors that the rows of a covered layer's weight multiply, at evenly spread positions.

    Args:
        x: the layer's input.
        site: a site for which `is_covered`.
        rows: largest number of positions.

    Returns:
        [groups, positions, inputs], float64, in memory of their own, and the step between two positions.
    """
    if site.geometry is None:
        vectors = x.reshape(1, -1, x.shape[-1])
        step = _step(x.shape[:-1], rows)
        return vectors[:, ::step].to(torch.float64, copy=True), step
    vectors, step = _patches(x, site.shapes["weight"][2:], site.geometry, rows)
    return vectors.to(torch.float64, copy=True), step


def _patches(x: Tensor, kernel: Sequence[int], geometry: Geometry, rows: int) -> tuple[Tensor, int]:
    """The inputs that the rows of a convolution's weight multiply, at evenly spread positions.

    Args:
        x: [B, C, *image] or [C, *image].
        kernel: size of the kernel.
        geometry: stride, padding, dilation and groups of the convolution.
        rows: largest number of positions.

    Returns:
        [groups, positions, channels of a group x kernel], in the order of the weight, and the step between two
        positions.
    """
    windows = geometry.windows(x, kernel)
    windows = windows.movedim(1, -1 - len(kernel))  # [B, *positions, C, *kernel]
    positions = windows.shape[: 1 + len(kernel)]
    step = _step(positions, rows)
    indices = torch.unravel_index(torch.arange(0, prod(positions), step, device=x.device), positions)
    patches = windows[indices].reshape(len(indices[0]), geometry.groups, -1)
    return patches.transpose(0, 1).contiguous(), step


def _step(positions: Sequence[int], rows: int) -> int:
    """The step between positions that are used, so that at most `rows` are.

    It has no factor in common with an axis. Otherwise every row of a picture would be met at the same columns, which
    behind a pixel shuffle are all of one phase, and in a window at the same places.
    """
    step = -(-prod(positions) // rows)
    while step > 1 and any(gcd(step, length) > 1 for length in positions):
        step += 1
    return step


def _added(total: Tensor | None, moments: Tensor) -> Tensor:
    """The sum of moments of a weight that several sites read, in the least number of groups that all of them divide."""
    if total is None:
        return moments
    groups = lcm(len(total), len(moments))
    return total.repeat_interleave(groups // len(total), 0) + moments.repeat_interleave(groups // len(moments), 0)
