"""Milliseconds of each kernel alone, beside torch's bare float32 operator on the same processor.

    python -m benchmarks.kernels

Each row is a small network around the kernel, at 64x64, quantized on one random input. Its integer graph runs on one
thread, node by node, in turns with the float operator; the median of each counts. A kernel also writes the codes of the
next layer, which the float operator does not. On a processor that only imitates AVX2, torch must be kept to it as well:
docs/performance.md has the variables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fxptq
from fxptq.kernels.stopwatch import TimedGraph


@dataclass(frozen=True)
class Case:
    """A kernel: the operator that serves it, the part of a network around it, and the float operator.

    Attributes:
        name: as in the table.
        operator: of fxptq, whose longest call counts.
        body: what stands between the first and the last layer of the network.
        channels: of its input and its output.
        bare: the module that torch runs alone.
        inside: the shape of its input.
        bits: of all weights and activations.
    """

    name: str
    operator: str
    body: nn.Module
    channels: tuple[int, int]
    bare: nn.Module
    inside: tuple[int, ...]
    bits: int


class Network(nn.Module):
    """Layers on each pixel before and after a body, so that it reads codes and writes them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, case.channels[0], 1), nn.Conv2d(case.channels[1], 3, 1)
        self.body = case.body

    def forward(self, x: Tensor) -> Tensor:
        """Runs on a picture."""
        out: Tensor = self.tail(self.body(self.head(x)))
        return out


class Tokens(nn.Module):
    """Lets a body run on the pixels of a picture as tokens, in windows of 64."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Runs on a picture, [1, C, H, W]."""
        tokens = x.flatten(2).transpose(1, 2).reshape(-1, 64, x.shape[1])
        out: Tensor = self.body(tokens)
        return out.reshape(1, -1, out.shape[-1]).transpose(1, 2).reshape(1, -1, *x.shape[2:])


class Attention(nn.Module):
    """Window attention: 64 windows of 64 tokens, 6 heads of 10 channels, with a bias for each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(60, 180), nn.Linear(60, 60)
        self.bias = nn.Parameter(torch.randn(6, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Attends within each window, [windows, tokens, channels]."""
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, 6, channels // 6).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (channels // 6) ** -0.5, qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1) + self.bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(windows, tokens, channels))


class Products(nn.Module):
    """The part of `Attention` between its layers, on queries, keys and values that lie one after another."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, qkv: Tensor) -> Tensor:
        """Attends, [3, windows, heads, tokens, channels]."""
        return (qkv[0] @ qkv[1].transpose(-2, -1) + self.bias).softmax(-1) @ qkv[2]


def cases() -> list[Case]:
    torch.manual_seed(0)
    found = []
    for bits in (4, 8):
        wide, narrow, attention = nn.Linear(60, 180), nn.Linear(60, 120), Attention()
        body: nn.Module = Tokens(nn.Sequential(nn.LayerNorm(60), wide, nn.Linear(180, 60)))
        found.append(Case("linear 60 to 180", "linear", body, (60, 60), wide, (4096, 60), bits))
        gelu = nn.Sequential(narrow, nn.GELU())
        body = Tokens(nn.Sequential(nn.LayerNorm(60), *gelu, nn.Linear(120, 60)))
        found.append(Case("linear 60 to 120, GELU", "linear", body, (60, 60), gelu, (4096, 60), bits))
        bare = Products(attention.bias.detach())
        inside: tuple[int, ...] = (3, 64, 6, 64, 10)
        row = Case("attention, 64 windows, 6 heads", "attention", Tokens(attention), (60, 60), bare, inside, bits)
        found.append(row)
        for name, operator, conv in (
            ("3x3, 64 to 64", "conv3x3", nn.Conv2d(64, 64, 3, padding=1)),
            ("5x5, 48 to 48", "conv2d", nn.Conv2d(48, 48, 5, padding=2)),
            ("1x1, 64 to 64", "conv2d", nn.Conv2d(64, 64, 1)),
            ("depthwise 3x3, 64", "depthwise_conv2d", nn.Conv2d(64, 64, 3, padding=1, groups=64)),
        ):
            channels, inside = conv.in_channels, (1, conv.in_channels, 64, 64)
            found.append(Case(name, operator, conv, (channels, channels), conv, inside, bits))
    return found


@torch.no_grad()
def measure(case: Case, rounds: int) -> tuple[float, float]:
    """Milliseconds of the kernel, and of the float operator."""
    generator = torch.Generator().manual_seed(0)
    x, inside = torch.rand(1, 3, 64, 64, generator=generator), torch.rand(case.inside, generator=generator)
    network = Network(case).eval()
    quantized = fxptq.quantize(network, x, case.bits, calib=[x], preset="quick", sites={"*": case.bits}, scale=1)
    graph = quantized.to_integer(compile=False, compare=False).of(quantized.program.variant((x,))).module
    runner, alone = TimedGraph(graph, torch.device("cpu")), []
    for _ in range(rounds):
        runner.run(x)
        alone.append(seconds(lambda: case.bare(inside)))
    calls = {n: t for n, t in runner.seconds.items() if str(n.target).split(".")[:2] == ["fxptq", case.operator]}
    if not calls:
        found = sorted({str(n.target) for n in runner.seconds if str(n.target).startswith("fxptq.")})
        raise SystemExit(f"{case.name}: no {case.operator} among {', '.join(found)}")
    return 1e3 * max(statistics.median(t) for t in calls.values()), 1e3 * statistics.median(alone)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| kernel | bits | ms | torch fp32, ms | times faster |\n|---|---:|---:|---:|---:|")
    for case in cases():
        ours, bare = measure(case, options.rounds)
        print(f"| {case.name} | {case.bits} | {ours:.2f} | {bare:.2f} | {bare / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
