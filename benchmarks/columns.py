"""What is left of the error of 3x3 weights where a row has several steps, layer by layer.

    python -m benchmarks.columns span_x4.safetensors --bits 4

The network is a recipe, or a weights file that spandrel recognises. A cell is the squared error of nearest values, with
the best range of each grid, over that of one grid a row. `middle apart`: two grids a row, one for the middle tap.
`each tap`: nine grids a row. `multiples`: one grid a row, and for each column (a tap of an input channel) the power of
two times its step that `channels` would try (see `fxptq.passes.multiples`; the best of its tries for the error of the
weight). The last two lines are the least and the largest value.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from benchmarks.study import open_study_network
from fxptq.commands.source import example_of
from fxptq.graph import Bits, Plan, Program
from fxptq.passes.multiples import exponents
from fxptq.quant.distribution import Distribution
from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.uniform import Uniform
from fxptq.quant.search import dobi2d

_CANDIDATES = 60
"""Candidates for each bound."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a recipe's name, or a weights file that spandrel recognises")
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    source = open_study_network(options.network)
    program = Program(source.model, example_of(source.recipe), Plan(Bits(options.bits, options.bits)))
    names = ("middle apart", "each tap", "multiples")
    print(f"{source.name}, {options.bits} bits\n")
    print(f"| weight | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    rows = []
    for key in program.quantizers:
        weight = program.weight_of(key)
        if weight is None or weight.shape[2:] != (3, 3) or weight.shape[1] < 8:  # the head, groups
            continue
        rows.append(parts(weight.detach(), options.bits))
        print(f"| {key} | {' | '.join(f'{part:.2f}' for part in rows[-1])} |", flush=True)
    for ends in (min, max):
        print(f"| {ends.__name__} | {' | '.join(f'{ends(column):.2f}' for column in zip(*rows, strict=True))} |")


def parts(weight: Tensor, bits: int) -> tuple[float, float, float]:
    """What is left of the error of a weight [N, C, 3, 3] with each form of several steps."""
    taps = weight.flatten(2).movedim(2, 1)  # [N, 9, C]
    whole = error(taps.flatten(1), bits)
    others = taps[:, [0, 1, 2, 3, 5, 6, 7, 8]].flatten(1)
    apart = error(taps[:, 4], bits) + error(others, bits)
    return apart / whole, error(taps.flatten(0, 1), bits) / whole, with_multiples(weight, bits) / whole


def error(rows: Tensor, bits: int) -> float:
    """The squared error of the best grid for each row."""
    values = Distribution.of(rows.contiguous(), len(rows))
    found = dobi2d(values, Uniform(bits, len(rows)), _CANDIDATES)
    return float((found.error * values.total).sum())


def with_multiples(weight: Tensor, bits: int) -> float:
    """The squared error of the best exponents for the columns of a weight."""
    least = error(weight.flatten(1), bits)
    for tried in exponents(weight, bits):
        own = Affine(bits, len(weight))
        own.set_map(exponents=tried)
        values = Distribution.of(own.normalize(weight), len(weight))
        bounds = dobi2d(values, own, _CANDIDATES // 2)
        own.set_bounds(bounds.lower, bounds.upper)
        with torch.no_grad():
            least = min(least, float(nn.functional.mse_loss(own.quantize(weight), weight, reduction="sum")))
    return least


if __name__ == "__main__":
    main()
