"""How far pictures go beyond the values of the calibration, where a network reads its trunk.

    python -m benchmarks.reach DAT_light_x4.pth --calib photographs --sets Set5 Set14

The inputs of the trunk and of the tail have 255 steps a channel, between the extremes of the calibration inputs made
wider by each of some factors. A cell is the squared error of rounding and clipping the values of a set's pictures, in
units of the error of rounding between the extremes themselves: the mean over pictures, and the worst one in brackets.
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
from fxptq.evaluate.sets import Pair
from fxptq.graph import Bits, Plan, Program
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
    options = parser.parse_args()
    source = open_study_network(options.network)
    program = Program(source.model, example_of(source.recipe), Plan(Bits(8, 8)))
    images, described = inputs_of(source.recipe, options.calib, options.images, options.seed)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    pictures = [_part(pair, source.recipe.input) for each in sets for pair in each]
    seen, unseen = _tails(program, images), _tails(program, pictures)
    print(f"{source.name}; calibrated on {described}; {len(pictures)} pictures\n")
    print("| input | " + " | ".join(f"x {factor:g}" for factor in FACTORS) + " |")
    print("|---" * (1 + len(FACTORS)) + "|")
    for key in seen:
        cells = (_cell(seen[key], unseen[key], factor) for factor in FACTORS)
        print(f"| {key} | {' | '.join(cells)} |")


def _part(pair: Pair, task: Input) -> Tensor:
    """A corner of a picture as an input of the network."""
    height, width = pair.lr.shape[:2]
    height, width = task.sizes.crop(height, width, _SIDE) or (height, width)
    return torch.from_numpy(pair.lr[:height, :width]).movedim(-1, 0)[None] * (task.range / 255)


@torch.no_grad()
def _tails(program: Program, pictures: Iterable[Tensor]) -> dict[str, list[Tails]]:
    """The tails of each picture at the inputs of the trunk and the tail, by quantizer."""
    found: dict[str, list[Tails]] = {}
    with ExitStack() as hooks:
        for site in program.sites:
            key = next((operand.quantizer for operand in site.operands if operand.slot == "input"), "")
            if site.edge not in ("trunk", "tail") or not key or key in found:
                continue
            axis = -1 if site.kind == "linear" else 1
            found[key] = []

            def keep(_module: object, args: tuple[Tensor], key: str = key, axis: int = axis) -> None:
                found[key].append(Tails.of(args[0].movedim(axis, 0).flatten(1)))

            hooks.callback(program.quantizers[key].register_forward_pre_hook(keep).remove)
        for picture in pictures:
            program(picture)
    return found


def _cell(seen: Sequence[Tails], unseen: Sequence[Tails], factor: float) -> str:
    low = torch.stack([tails.low.amin(1) for tails in seen]).amin(0)
    high = torch.stack([tails.high.amax(1) for tails in seen]).amax(0)
    more, unit = (factor - 1) / 2 * (high - low), float(((high - low) / 255).square().sum() / 12)
    errors = [factor**2 + tails.clipped(low - more, high + more) / unit for tails in unseen]
    return f"{sum(errors) / len(errors):.2f} ({max(errors):.1f})"


if __name__ == "__main__":
    main()
