"""The time of a network on integers by operator, beside the limit of the processor.

    python benchmarks/profile_kernels.py edsr.safetensors --size 64x64

The network runs on one thread, uncompiled, so that every operator is timed alone. The limit is the largest rate of the
processor's byte products by the instructions of the kernels' path, measured by peak.cpp on the spot (x86; on other
processors the column is empty). GMAC/s are counted as for a direct convolution (9 products an output); Winograd does 4.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import statistics
import subprocess
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxptq.bench.ways import subject
from fxptq.kernels.stopwatch import TimedGraph
from fxptq.kernels.targets import TARGETS


class Timed(TimedGraph):
    """Also records the shapes of each node's result and of its arguments."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, torch.device("cpu"))
        self.shapes: dict[fx.Node, tuple[tuple[int, ...], ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and records its time and shapes."""
        result = super().run_node(n)
        tensors = [result, *self.fetch_args_kwargs_from_env(n)[0]]
        self.shapes[n] = tuple(tuple(t.shape) for t in tensors if isinstance(t, torch.Tensor))
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    what = subject(options.checkpoint, None, options.size)
    model = what.quantized.to_integer(compile=False)
    with torch.no_grad():
        model(what.x)
        runner = Timed(model.of(what.quantized.program.variant((what.x,))).module)
        for _ in range(options.rounds):
            runner.run(what.x)
    limits = peak(model.lowering.backend.name)
    print(f"{options.checkpoint.stem}, {options.size}, one thread")
    if limits:
        print(f"limit: {limits[0]:.0f} GMAC/s of bytes, {limits[1]:.0f} GB/s read from memory")
    print("\n| operator | calls | ms | share | GMAC | GMAC/s | of the limit |\n|---|---:|---:|---:|---:|---:|---:|")
    for line in lines(runner, limits[0] if limits else None):
        print(line)


def peak(path: str) -> tuple[float, float] | None:
    """Measures GMAC/s and GB/s of this machine with the instructions of a path of the kernels.

    Returns None if peak.cpp does not build or run.
    """
    flags = next((target.flags for target in TARGETS if target.name == path), ("-march=native",))
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        try:
            # The command is the user's own compiler with a file of the project.
            source = str(Path(__file__).parent / "peak.cpp")
            subprocess.run([compiler, "-O3", *flags, source, "-o", str(program)], check=True)  # noqa: S603
            printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout  # noqa: S603
        except subprocess.CalledProcessError:
            return None
    products, read = printed.split()
    return float(products), float(read)


def lines(runner: Timed, limit: float | None) -> list[str]:
    """Makes one line for each operator, the slowest first, and one for all operations that are not fxptq's."""
    ms: dict[str, float] = collections.defaultdict(float)
    macs: dict[str, int] = collections.defaultdict(int)
    calls: dict[str, int] = collections.defaultdict(int)
    for node in runner.module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        own = str(node.target).startswith("fxptq.")
        name = str(node.target).split(".")[1] if own else "float operations and moves"
        ms[name] += 1000 * statistics.median(runner.seconds[node])
        macs[name] += products_of(name, node, runner) if own else 0
        calls[name] += 1
    total = sum(ms.values())
    table = []
    for name in sorted(ms, key=lambda name: -ms[name]):
        rate = macs[name] / ms[name] / 1e6
        share = f"{100 * rate / limit:.0f} %" if limit and macs[name] else ""
        work = f"{macs[name] / 1e9:.2f} | {rate:.0f} | {share} |" if macs[name] else "| | |"
        table.append(f"| {name} | {calls[name]} | {ms[name]:.2f} | {100 * ms[name] / total:.0f} % | {work}")
    return [*table, f"| all | {sum(calls.values())} | {total:.2f} | | | | |"]


def products_of(name: str, node: fx.Node, runner: Timed) -> int:
    """Counts the multiply-adds of one call."""
    out, *inputs = runner.shapes[node]
    if name == "linear":
        return prod(inputs[0]) * int(node.kwargs["columns"])
    if name in ("conv2d", "narrow_conv2d", "conv3x3"):
        kernel = node.kwargs.get("kernel_size", (3, 3))
        return prod(out) * inputs[0][1] // int(node.kwargs.get("groups", 1)) * prod(kernel)
    if name == "depthwise_conv2d":
        return prod(out) * prod(node.kwargs["kernel_size"])
    if name == "matmul":
        return prod(out) * inputs[0][-1]
    if name == "attention":
        return prod(inputs[0]) * inputs[1][-2] + prod(out) * inputs[1][-2]
    return 0


if __name__ == "__main__":
    main()
