"""Seconds from a network to its integers, by stage, for chains of more and more layers, and for a bundled network.

A chain is small in every layer, so that its time is that of the analysis: `residual` is convolutions with a ReLU and a
sum, `linear` is LayerNorm with two linear layers and GELU, `dense` joins the output of each convolution to its input,
of which the next layer reads the last channels, and `products` is linear layers with sums around them that all lead to
one product. The exponent compares the two longest chains: 1 is a time that grows
as the number of layers, 2 one that grows as its square. Everything runs on one core, and seconds are those of
the processor, of the faster of two runs.

    python -m benchmarks.capture [--layers 100 200 400 800] [--recipes swinir_x4]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.commands.source import example_of
from fxptq.graph import Bits, Plan, Program
from fxptq.graph.capture import capture
from fxptq.graph.insert import insert_quantizers
from fxptq.graph.sites import find_sites
from fxptq.graph.topology import residual_stages
from fxptq.kernels.lower import IntegerModel
from fxptq.recipe import Recipe

CHANNELS = 4


class Residual(nn.Module):
    """Convolutions, each with a ReLU and a sum around both."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, 3, 1)
        self.body = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  # see the class
        y = self.head(x)
        for layer in self.body:
            y = y + F.relu(layer(y)) * 0.1
        return self.tail(y)  # type: ignore[no-any-return]


class Linear(nn.Module):
    """Pairs of linear layers on the channels, each pair with LayerNorm, GELU and a sum around them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, 3, 1)
        self.norm = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(layers // 2))
        self.wide = nn.ModuleList(nn.Linear(CHANNELS, 8) for _ in range(layers // 2))
        self.narrow = nn.ModuleList(nn.Linear(8, CHANNELS) for _ in range(layers // 2))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  # see the class
        y = self.head(x).permute(0, 2, 3, 1)
        for norm, wide, narrow in zip(self.norm, self.wide, self.narrow, strict=True):
            y = y + narrow(F.gelu(wide(norm(y)))) * 0.1
        return self.tail(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Convolutions that read their predecessors' outputs, joined, of which old ones leave again."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 2 * CHANNELS, 1), nn.Conv2d(2 * CHANNELS, 3, 1)
        self.body = nn.ModuleList(nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  # see the class
        y = self.head(x)
        for layer in self.body:
            y = torch.cat([y[:, CHANNELS:], F.relu(layer(y))], 1)
        return self.tail(y)  # type: ignore[no-any-return]


class Products(nn.Module):
    """Linear layers, each with a sum around it, before a product of activations."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  # see the class
        y = F.pad(x, (0, 0, 0, 0, 0, 1)).permute(0, 2, 3, 1)
        for layer in self.body:
            y = y + layer(y) * 0.1
        return torch.matmul(y, y.transpose(2, 3)).unsqueeze(1)


CHAINS: dict[str, Callable[[int], nn.Module]] = {
    "residual": Residual,
    "linear": Linear,
    "dense": Dense,
    "products": Products,
}


def stages(model: nn.Module, example: Tensor) -> dict[str, float]:
    """The seconds of each stage of the way from a network to its integers."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        for _ in range(2):  # the faster one, since Python's collection of garbage falls into any stage
            start = time.process_time()
            result = work()
            seconds[name] = min(time.process_time() - start, seconds.get(name, math.inf))
        return result

    with torch.no_grad():
        model(example)
        timed("eager", lambda: model(example))
        taken = timed("capture", lambda: capture(model, (example,)))
        sites = timed("sites", lambda: find_sites(taken.graph))
        planned = timed("plan", lambda: Plan(Bits(4, 4)).apply(sites))
        timed("insert", lambda: insert_quantizers(taken.graph, planned))
        timed("topology", lambda: residual_stages(taken.graph))
        program = timed("Program, all of these", lambda: Program(model, example, Plan(Bits(4, 4))))
        for quantizer in program.quantizers.values():
            quantizer.set_bounds(-1.0, 1.0)
        integer = timed("lower", lambda: IntegerModel(program, compile=False))
        integer(example)
        timed("integer call", lambda: integer(example))
    return seconds


def table(title: str, columns: dict[str, dict[str, float]], *, exponent: bool) -> None:
    """Prints the seconds of each stage, and the exponent of the last two columns."""
    names = list(columns)
    print(f"\n{title}\n\n| seconds | " + " | ".join(names) + (" | exponent |" if exponent else " |"))
    print("|---|" + "---:|" * (len(names) + exponent))
    for stage in columns[names[0]]:
        figures = [column[stage] for column in columns.values()]
        cells = [f"{figure:.3f}" for figure in figures]
        if exponent:
            cells.append(f"{math.log(figures[-1] / figures[-2]) / math.log(int(names[-1]) / int(names[-2])):.2f}")
        print(f"| {stage} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--chains", nargs="*", choices=list(CHAINS), default=list(CHAINS))
    parser.add_argument("--recipes", nargs="*", default=["swinir_x4"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stages(Residual(4).eval(), torch.rand(1, 3, 8, 12))  # what is loaded at the first use belongs to no figure
    for name in options.chains:
        columns = {str(count): stages(CHAINS[name](count).eval(), torch.rand(1, 3, 8, 12)) for count in options.layers}
        table(f"{name}, by the number of layers", columns, exponent=len(columns) > 1)
    for name in options.recipes:
        recipe = Recipe.load(name)
        example = example_of(recipe)
        size = "x".join(map(str, example.shape[2:]))
        table(recipe.title, {size: stages(recipe.build_model(), example)}, exponent=False)


if __name__ == "__main__":
    main()
