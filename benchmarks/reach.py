"""How far pictures go beyond the values of the calibration, where a network reads its trunk.

    python -m benchmarks.reach DAT_light_x4.pth --calib photographs --sets Set5 Set14

The inputs of the trunk and of the tail, or of all layers but the head with `--all`, have 255 steps a channel. They lie
between the extremes of the calibration inputs, made wider by each of some factors, or between the extremes of these
inputs and of vivid copies of eight of them, as `channels` chooses ranges of 8 bits (see `fxptq.passes.vivid`). A cell
is the squared error of rounding and clipping the values of a set's pictures, in units of the error of rounding between
the extremes themselves: the mean over pictures, and the worst one in brackets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.study import common_options, inputs_of, open_study_network
from fxptq.commands.scores import open_sets
from fxptq.commands.source import example_of
from fxptq.data.sources import Inputs
from fxptq.evaluate.sets import Pair
from fxptq.graph import Bits, Plan, Program
from fxptq.graph.sites import Site
from fxptq.passes.vivid import COPIES, vivid
from fxptq.recipe import Input

FACTORS = (1.0, 1.1, 1.2, 1.3, 1.5, 2.0)

_TAIL = 32
"""Values of each channel, on both sides, that may lie beyond the extremes of the calibration."""

_SIDE = 96
"""Largest side of the part of a picture that the network runs on."""


@dataclass(frozen=True)
class Tails:
    """The outermost values of one picture at one input.

    Attributes:
        low: the least values of each channel, [C, n].
        high: the largest ones, [C, n].
        count: number of positions of the picture.
    """

    low: Tensor
    high: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor) -> Tails:
        """The tails of values by channel, [C, positions]."""
        n = min(_TAIL, x.shape[1])
        return cls(x.topk(n, 1, largest=False).values, x.topk(n, 1).values, x.shape[1])

    def clipped(self, low: Tensor, high: Tensor) -> float:
        """The mean over positions of the squared distances to ranges [C], summed over channels."""
        below, above = (low[:, None] - self.low).clamp(min=0), (self.high - high[:, None]).clamp(min=0)
        return float(below.square().sum() + above.square().sum()) / self.count


def main() -> None:
    parser = common_options(__doc__)
    parser.set_defaults(images=24, sets=["Set5"])
    parser.add_argument("--calib", default="synthetic", help="a folder of pictures, or synthetic")
    parser.add_argument("--all", action="store_true", help="the inputs of all layers but the head")
    options = parser.parse_args()
    source = open_study_network(options.network)
    program = Program(source.model, example_of(source.recipe), Plan(Bits(8, 8)))
    images, described = inputs_of(source.recipe, options.calib, options.images, options.seed)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    pictures = [_part(pair, source.recipe.input) for each in sets for pair in each]
    sites = [site for site in program.sites if site.edge in ("trunk", "tail") or (options.all and site.edge != "head")]
    seen, unseen, copies = (_tails(program, sites, x) for x in (images, pictures, vivid(images, COPIES)))
    print(f"{source.name}; calibrated on {described}; {len(pictures)} pictures\n")
    print("| input | " + " | ".join(f"x {factor:g}" for factor in FACTORS) + " | vivid |")
    print("|---" * (2 + len(FACTORS)) + "|")
    for key in seen:
        low, high = _range(seen[key])
        unit = float(((high - low) / 255).square().sum() / 12)
        more = [(factor - 1) / 2 * (high - low) for factor in FACTORS]
        ranges = [*((low - m, high + m) for m in more), _range([*seen[key], *copies[key]])]
        cells = (_cell(unseen[key], *ends, unit) for ends in ranges)
        print(f"| {key} | {' | '.join(cells)} |")


def _part(pair: Pair, task: Input) -> Tensor:
    """A corner of a picture as an input of the network."""
    height, width = pair.lr.shape[:2]
    height, width = task.sizes.crop(height, width, _SIDE) or (height, width)
    return torch.from_numpy(pair.lr[:height, :width]).movedim(-1, 0)[None] * (task.range / 255)


@torch.no_grad()
def _tails(program: Program, sites: Sequence[Site], pictures: Iterable[Inputs]) -> dict[str, list[Tails]]:
    """The tails of each picture at the inputs of the sites, by quantizer."""
    found: dict[str, list[Tails]] = {}
    with ExitStack() as hooks:
        for site in sites:
            key = next((operand.quantizer for operand in site.operands if operand.slot == "input"), "")
            if not key or key in found:
                continue
            axis = -1 if site.kind == "linear" else 1
            found[key] = []

            def keep(_module: object, args: tuple[Tensor], key: str = key, axis: int = axis) -> None:
                found[key].append(Tails.of(args[0].movedim(axis, 0).flatten(1)))

            hooks.callback(program.quantizers[key].register_forward_pre_hook(keep).remove)
        for picture in pictures:
            program(picture)
    return found


def _range(seen: Sequence[Tails]) -> tuple[Tensor, Tensor]:
    """The extremes of each channel."""
    return (
        torch.stack([tails.low.amin(1) for tails in seen]).amin(0),
        torch.stack([tails.high.amax(1) for tails in seen]).amax(0),
    )


def _cell(unseen: Sequence[Tails], low: Tensor, high: Tensor, unit: float) -> str:
    rounding = float(((high - low) / 255).square().sum() / 12)
    errors = [(rounding + tails.clipped(low, high)) / unit for tails in unseen]
    return f"{sum(errors) / len(errors):.2f} ({max(errors):.1f})"


if __name__ == "__main__":
    main()
