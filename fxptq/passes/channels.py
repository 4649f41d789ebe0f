"""Channels: a factor and a center for each input channel of a layer, chosen by the error of the layer's output.

With the input's quantizer at the factor f and the center z, and the weight's at the factor 1 / f, the layer computes
the sum of W f (x - z) / f and the constant W z. In float this changes nothing. On grids, wide channels no longer decide
the step of narrow ones, and the weights share the burden. Integer kernels need one multiply-add a channel where the
input becomes codes, and a larger bias; sums of codes stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, register
from fxptq.passes.crops import training_crops
from fxptq.passes.judge import Judge, StagedSettings, State
from fxptq.passes.maps import NONE
from fxptq.passes.offsets import movable_weights
from fxptq.passes.readers import Group, extremes_of, groups_of, take_of
from fxptq.passes.samples import in_memory, most_bytes, sample, turned_off
from fxptq.passes.sensitivity import estimate
from fxptq.passes.trials import FINE, Trials
from fxptq.passes.vivid import COPIES, vivid
from fxptq.quant.quantizer import BITS

_DRAWS = 1
"""Random output directions for a batch that the errors of layers of 8 bits are estimated with."""

_SIDE = 32
"""Side of the crops that they are estimated on, in pixels, as in `allocate`."""

_SHARE = 0.002
"""An input of 8 bits gets a map if it makes more than this part of the sum of all operands' errors."""


@register("channels")
class Channels(Pass):
    """Gives the inputs of layers with an affine scheme factors and centers, and sets their bounds and their weights'.

    Candidates are powers of the widths and largest values of channels (as in SmoothQuant, arXiv 2211.10438, and
    RepQ-ViT, arXiv 2212.08254). The best for the outputs of the layers, with inputs and weights quantized, is tried in
    the network, a stage of layers at a time; a stage that makes the network's output worse is taken back. Weights
    of 7 and 8 bits are in float meanwhile: behind `refit` their errors are nothing, and before it they are mostly a
    wrong mean, which `refit` corrects. Layers of 8 bits keep their grid where it is fine enough, as estimated by
    `sensitivity`. Behind the best map, the taps of a convolution may get steps of their own, powers of two times the
    step of their row (see `fxptq.passes.multiples`). The pass needs bounds that are set.
    """

    @dataclass(frozen=True)
    class Settings(StagedSettings):
        """Settings; see also `StagedSettings`.

        While maps are compared, the bounds of an input get half of the `k` candidates, and those of a weight a quarter.

        Attributes:
            rows: number of positions of each input that errors are measured on.
            widths_move: whether a later pass gives operands other widths (`allocate`). What a map takes from the error
                of one operand then pays for bits of others, so candidates are compared by the factors by which the
                errors of inputs and weights change (see `fxptq.passes.tradeoff`), not by their sum.
        """

        rows: int = 1536
        widths_move: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rows < 1:
                raise InputError(f"rows must be at least 1, not {self.rows}")

    settings: Settings

    @torch.no_grad()
    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Raises:
            InputError: if there are no images.
        """
        groups = self._groups(ctx)
        if not groups:
            return PassReport(notes=("no layer has affine quantizers whose bounds are set and whose grid is coarse",))
        moving, quantizers = self.settings.widths_move, ctx.student.quantizers
        weights = [key for key in movable_weights(ctx.student) if moving or quantizers[key].bits >= FINE]
        with turned_off(ctx.student, weights):
            judge = Judge.of(ctx, self.settings)
            start = judge.error
            rows = -(-self.settings.rows // len(judge.inputs))
            beyond = self._beyond(ctx, judge.inputs, groups)
            chosen: list[tuple[Group, str, State]] = []
            with ctx.progress.task("channels", len(groups)) as advance:
                for part in in_memory(groups, self._nbytes, most_bytes(ctx)):
                    samples = sample(ctx, judge.inputs, {group.key: take_of(group, rows) for group in part})
                    for group in part:
                        own, others = samples.pop(group.key), beyond.get(group.key, [])
                        name, state = Trials(ctx.student, group, own, others, self.settings.k, moving).best()
                        chosen.append((group, name, state))
                        advance(note=name)
            changed = [(group, name, state) for group, name, state in chosen if state]
            kept = judge.keeps_states([state for _, _, state in changed], self.settings.stages)
        mapped = sum(name != NONE for _, name, _ in changed)
        stepped = sum("exponents" in tensors for _, _, state in changed for tensors in state.values())
        return PassReport(
            notes=(
                f"{len(groups)} inputs: {mapped} with a better map for their layers, {len(changed) - mapped} with "
                f"other changes alone; {kept} kept; squared error of the output {start:.3g} -> {judge.error:.3g}",
                *([f"{stepped} weights with several steps a row"] if stepped else []),
                *sorted({f"{name}: {sum(n == name for _, n, _ in chosen)}" for _, name, _ in chosen}),
            )
        )

    @staticmethod
    def _beyond(ctx: Context, inputs: Sequence[Inputs], groups: Sequence[Group]) -> dict[str, list[Tensor]]:
        """The extremes of the channels of fine inputs on vivid copies, by key."""
        fine = [group for group in groups if ctx.student.quantizers[group.key].bits >= FINE]
        return sample(ctx, vivid(inputs, COPIES), {group.key: extremes_of(group) for group in fine}) if fine else {}

    def _groups(self, ctx: Context) -> list[Group]:
        """The groups below 8 bits, those of 8 bits that make a share of the error worth a map, and the picture's.

        The head may have a grid that loses nothing, and how much clipped white costs depends on the picture.
        """
        groups, quantizers = list(groups_of(ctx.student)), ctx.student.quantizers
        keys = {group.key: [group.key, *(key for _, key in group.layers)] for group in groups}
        fine = {key for key, own in keys.items() if all(quantizers[each].bits == BITS[-1] for each in own)}
        if not fine or any(quantizer.mode != "on" for quantizer in quantizers.values()):
            return [group for group in groups if group.key not in fine]
        ctx.install_kernels()
        crops = training_crops(ctx, crops=4, batch=4, patch=_SIDE, fraction=self.settings.holdout)
        errors = estimate(ctx, crops, _DRAWS)
        least = _SHARE * sum(errors.values())
        heads = {group.key for group in groups if any(site.edge == "head" for site, _ in group.layers)}
        return [group for group in groups if group.key not in fine - heads or errors[group.key] > least]

    def _nbytes(self, group: Group) -> int:
        return 4 * self.settings.rows * group.channels * (1 if group.is_linear else 3)  # crops have rims
