"""Moments: E x x^T of what each layer's weight multiplies, over all calibration images, as the student stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, Site, register


@register("moments")
class Moments(Pass):
    """Runs the calibration images through the student and fills `ctx.moments` for weights of linear and conv2d sites.

    Inputs are taken behind their quantizers: quantized, if those are on. Layers whose input has no quantizer are left
    out.
    """

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            rows: at most so many positions of an image are taken for each layer, evenly spread.
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
        sums: dict[str, Tensor] = {}
        with ExitStack() as hooks, torch.no_grad(), ctx.progress.task("moments", len(ctx.images)) as advance:
            for site in ctx.student.sites:
                hooks.enter_context(self._watch(ctx, site, sums))
            for image in ctx.images:
                ctx.student(*ctx.placed(image))
                advance()
        ctx.moments.update(sums)
        return PassReport(notes=(f"{len(sums)} weights, {len(ctx.images)} images",))

    @contextmanager
    def _watch(self, ctx: Context, site: Site, sums: dict[str, Tensor]) -> Iterator[None]:
        keys = {operand.slot: operand.quantizer for operand in site.operands}
        if site.kind not in ("linear", "conv2d") or not (keys.get("input") and keys.get("weight")):
            yield
            return

        def take(_module: object, _inputs: object, x: Tensor) -> None:
            found = _second_moments(x.detach(), site, self.settings.rows)
            sums[keys["weight"]] = sums[keys["weight"]] + found if keys["weight"] in sums else found

        handle = ctx.student.quantizers[keys["input"]].register_forward_hook(take)
        try:
            yield
        finally:
            handle.remove()


def _second_moments(x: Tensor, site: Site, rows: int) -> Tensor:
    """Sum of x x^T over positions, [groups, inputs, inputs] with the groups of a grouped convolution."""
    if site.kind == "linear":
        vectors = x.reshape(1, -1, x.shape[-1])
    else:
        vectors = _patches(x, site.shapes["weight"], site.shapes["input"], site.shapes["output"])
    step = -(-vectors.shape[1] // rows)
    vectors = vectors[:, ::step].double()
    return (vectors.transpose(1, 2) @ vectors * step).cpu()


def _patches(x: Tensor, weight: Sequence[int], given: Sequence[int], out: Sequence[int]) -> Tensor:
    """What a convolution's window sees at each position, [groups, positions, channels of a group * kh * kw]."""
    groups = x.shape[1] // weight[1]
    kernel = (weight[2], weight[3])
    stride = tuple(max(1, round(i / o)) for i, o in zip(given[2:], out[2:], strict=True))
    columns = F.unfold(x, kernel, padding=tuple(k // 2 for k in kernel), stride=stride)
    return columns.reshape(len(x), groups, -1, columns.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
