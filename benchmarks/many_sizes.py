"""A thousand pictures of fifty sizes through one process: memory, graphs, sizes and time, at the start and at the end.

    python -m benchmarks.many_sizes
    python -m benchmarks.many_sizes --network unrolled --way integers --pictures 1000 --sizes 50

`edsr` is one graph for all sizes; `unrolled` needs a graph for each height, of which a program keeps sixteen. The
script prints a Markdown table: a row is a tenth of the pictures; its figures are the median time of a picture in ms,
the resident memory of the process at its end in MB, and the graphs, lowered graphs and sizes that are kept then.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxptq
from fxptq.models.edsr import EDSR


class Unrolled(nn.Module):
    """Loops over rows of blocks, so that each number of them needs a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The picture, and a filtered sum of its features in several places."""
        y = torch.relu(self.head(x))
        for row in range(x.shape[2] // 4):
            y = y + 0.1 * y.roll(row, 2)
        return x + self.tail(y)  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "edsr": lambda: EDSR(n_resblocks=4, n_feats=16, scale=2),
    "unrolled": Unrolled,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="edsr")
    parser.add_argument("--way", choices=("simulation", "integers", "compiled"), default="integers")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--sizes", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    example = torch.rand(1, 3, 32, 32)
    quantized = fxptq.quantize(
        NETWORKS[options.network]().eval(), example, fxptq.Bits(4, 4), calib=[example], preset="quick"
    )
    model: Any = quantized
    if options.way != "simulation":
        model = quantized.to_integer(compile=options.way == "compiled")
        print(f"kernel path {model.lowering.backend.name}")
    print(f"{options.network}, {options.way}, {options.threads} thread(s), {processor()}\n")
    sizes = [(24 + 2 * index, 24 + 3 * (index * 7 % options.sizes)) for index in range(options.sizes)]
    chosen = random.Random(0)  # noqa: S311  # no secret
    order = [chosen.choice(sizes) for _ in range(options.pictures)]
    tenth = max(options.pictures // 10, 1)
    print("| pictures | ms | MB | graphs | lowered | sizes |\n|---|---|---|---|---|---|")
    times: list[float] = []
    with torch.no_grad():
        for number, size in enumerate(order, start=1):
            picture = torch.rand(1, 3, *size)
            start = time.perf_counter()
            model(picture)
            times.append((time.perf_counter() - start) * 1e3 / picture.numel() * 3 * 64 * 64)
            if number % tenth == 0:
                kept = (len(quantized.program.variants), len(getattr(model, "_lowered", ())))
                row = (number, f"{statistics.median(times[-tenth:]):.2f}", f"{resident():.1f}", *kept)
                print("| " + " | ".join(map(str, (*row, quantized.program._cache.sizes))) + " |", flush=True)  # noqa: SLF001
    third = len(times) // 3
    print(f"\ntime of a picture, per 64 x 64 pixels: last third / first third = {ratio(times, third):.3f}")


def ratio(times: list[float], third: int) -> float:
    return statistics.median(times[-third:]) / statistics.median(times[:third])


def resident() -> float:
    """The memory of this process that is in use, in MB."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "?")


if __name__ == "__main__":
    main()
