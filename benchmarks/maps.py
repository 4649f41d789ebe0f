"""What maps and shares cost the integer kernels: sites with them beside the same sites on one grid a tensor.

    python benchmarks/maps.py --bits 4
    python benchmarks/maps.py --bits 4 --steps --only 3x3       # the taps of convolutions have steps of their own, too

Each row is a part of a network on one thread, uncompiled, with everything that makes its codes. Both forms take turns,
and the least time of each counts; the last column is their ratio. The first line names the processor's path.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.graph import Bits, Plan, Program
from fxptq.kernels.build import backend
from fxptq.kernels.lower import IntegerModel, lower
from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.shares import Shares

SCHEMES = (
    ("*.attention", "shares"),
    *((f"*.{part}", "affine") for part in ("query", "key", "value", "input", "weight")),
)


class Residual(nn.Module):
    """A layer that reads a sum that is read again, so that an operator of its own makes its codes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer and the sum."""
        y = x + 1.0
        z: Tensor = self.layer(y)
        return z + y


class Windows(nn.Module):
    """Attention of windows with a bias for each head.

    Args:
        width: channels.
        heads: number of heads.
        side: side of a window.
        temperature: whether logits have a factor for each head, which keeps the products apart from the softmax.
    """

    def __init__(self, width: int = 60, heads: int = 6, side: int = 8, *, temperature: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(1, heads, side**2, side**2))
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1)) if temperature else None

    def forward(self, x: Tensor) -> Tensor:
        """[windows, tokens, width] in and out."""
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1)
        if self.temperature is not None:
            logits = logits * self.temperature
        y = (logits + self.bias).softmax(-1) @ v
        z: Tensor = self.proj(y.transpose(1, 2).reshape(windows, tokens, width))
        return z


class Channels(nn.Module):
    """Attention of channels: its sums run over pixels."""

    def __init__(self, width: int = 48, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Conv2d(width, 3 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in and out."""
        q, k, v = (part.reshape(len(x), self.heads, -1, x[0, 0].numel()) for part in self.qkv(x).chunk(3, 1))
        attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
        return (attention @ v).reshape(x.shape)


def parts() -> dict[str, tuple[nn.Module, Tensor]]:
    """The parts of networks by name, each with an input of the size that it has for a picture of 64 x 64."""
    tokens, picture, windows = torch.randn(1, 4096, 60), torch.randn(1, 64, 64, 64), torch.randn(64, 64, 60)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    return {
        "linear behind LayerNorm": (nn.Sequential(nn.LayerNorm(60), nn.Linear(60, 180)), tokens),
        "linear behind GELU": (nn.Sequential(nn.Linear(60, 120), nn.GELU(), nn.Linear(120, 60)), tokens),
        "linear behind a sum": (Residual(nn.Linear(60, 60)), tokens),
        "3x3 behind ReLU": (nn.Sequential(conv, nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)), picture),
        "3x3 behind a sum": (Residual(nn.Conv2d(64, 64, 3, padding=1)), picture),
        "window attention": (Windows(), windows),
        "window attention, unfused": (Windows(temperature=True), windows),
        "attention of channels": (Channels(), torch.randn(1, 48, 64, 64)),
    }


@dataclass
class Range:
    """Observes the range of what passes."""

    low: float = float("inf")
    high: float = -float("inf")

    def update(self, x: Tensor) -> None:
        """Widens the range."""
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))


def quantized(network: nn.Module, x: Tensor, bits: int, *, maps: bool, steps: bool = False) -> IntegerModel:
    """The part on integers, with random maps or without; with `steps`, maps of taps have random exponents."""
    schemes = SCHEMES if maps else ()
    program = Program(network.eval(), x, Plan(Bits(bits, bits), edges=None, connective=None, schemes=schemes))
    if maps:
        set_maps(program)
    if steps:
        set_steps(program)
    for quantizer in program.quantizers.values():
        quantizer.observer, quantizer.mode = Range(), "observe"
    with torch.no_grad():
        program(x)
    for key, quantizer in program.quantizers.items():
        seen, weight = quantizer.observer, program.weight_of(key)
        assert isinstance(seen, Range)
        low, high = torch.tensor(seen.low), torch.tensor(seen.high)
        if weight is not None and quantizer.ranges > 1:
            high = quantizer.normalize(weight).detach().flatten(1).abs().amax(1)
            low = -high
        quantizer.set_bounds(low, high)
        quantizer.mode, quantizer.observer = "on", None
    model = lower(program, compile=False)
    assert not model.lowering.simulated, model.lowering.simulated
    return model


def set_maps(program: Program) -> None:
    """Gives every affine operand a random map, and keeps the products of factors that a sum needs."""
    factors: dict[str, Tensor] = {}
    for site in program.sites:
        first, second = (program.quantizers[operand.quantizer] for operand in site.operands)
        key = site.operands[0].quantizer
        picture = (1,) * (len(site.shapes["weight"]) - 2) if "weight" in site.shapes else ()
        if isinstance(first, Affine) and "weight" in site.shapes and isinstance(second, Affine):
            channels = site.shapes["weight"][1]
            factors.setdefault(key, _factors(channels))
            first.set_map(factors[key].view(-1, *picture), 0.1 * torch.randn(channels).view(-1, *picture))
            second.set_map((1 / factors[key]).view(-1, *picture))
        elif isinstance(first, Affine) and isinstance(second, Affine):
            heads, rows, depth = site.shapes["lhs"][-3:]
            by_channel = depth < 1024  # else the sum runs over pixels
            factor = _factors(heads, 1, depth) if by_channel else _factors(heads, rows, 1)
            first.set_map(factor)
            columns = factor.transpose(-2, -1)
            second.set_map(1 / columns if by_channel else columns, 0.1 * torch.randn(columns.shape))
        elif isinstance(first, Shares) and isinstance(second, Affine):
            heads, _, width = site.shapes["rhs"][-3:]
            shape = (heads, 1, width if width < 1024 else 1)
            second.set_map(_factors(*shape), 0.1 * torch.randn(shape))


def set_steps(program: Program) -> None:
    """Gives the columns of convolutions several steps, 1 to 8 times that of their row."""
    for key, quantizer in program.quantizers.items():
        weight = program.weight_of(key)
        if weight is not None and isinstance(quantizer, Affine) and weight[0, 0].numel() > 1:
            exponents = torch.randint(0, 4, weight.shape[1:], dtype=torch.uint8)
            quantizer.set_map(quantizer.factor, quantizer.center, exponents)


def _factors(*shape: int) -> Tensor:
    """Factors near 1, so that the attentions of both forms have logits of one size, on which their time depends."""
    return torch.randn(shape).mul(0.1).exp()


@torch.no_grad()
def least_ms(models: tuple[IntegerModel, IntegerModel], x: Tensor, rounds: int) -> list[float]:
    """The least milliseconds of the graph of each model; the two take turns."""
    graphs = [model.of(model.program.variants[0]).module for model in models]
    least = [float("inf")] * 2
    for turn in range(rounds + 2):
        for i, graph in enumerate(graphs):
            started = time.perf_counter()
            graph(x)
            if turn > 1:
                least[i] = min(least[i], 1000 * (time.perf_counter() - started))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", action="store_true", help="give the taps of convolutions steps of their own")
    parser.add_argument("--only", default="", help="the rows whose name has these letters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{backend().name}, one thread, {options.bits} bits\n")
    print("| part | one grid a tensor, ms | maps and shares, ms | ratio |\n|---|---:|---:|---:|")
    for name, (network, x) in parts().items():
        if options.only in name:
            plain = quantized(network, x, options.bits, maps=False)
            mapped = quantized(network, x, options.bits, maps=True, steps=options.steps)
            times = least_ms((plain, mapped), x, options.rounds)
            print(f"| {name} | {times[0]:.3f} | {times[1]:.3f} | {times[1] / times[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
