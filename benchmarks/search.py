"""The time of a search for bounds in a network of SwinIR-light's size.

The values are random numbers, not the activations of a network: 24 blocks, each with the ten activations and six
weights (qkv as three) of a Swin block at a 64x64 input, bell-shaped, after softmax and after GELU. Everything runs on
one core. The time of observation grows with the images; the time of a search does not.

    python benchmarks/search.py [--images 1 4] [--bits 2 4 8]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fxptq.quant.distribution import Distribution
from fxptq.quant.observer import Histogram
from fxptq.quant.search import Bounds, dobi2d, dobi_one_sided, dobi_two_sided, minmax

SEARCHES = {"minmax": minmax, "dobi, two-sided": dobi_two_sided, "dobi, one-sided": dobi_one_sided, "dobi2d": dobi2d}
BLOCKS, TOKENS, DIM, HEADS, WINDOW = 24, 64 * 64, 60, 6, 64


def activations(generator: torch.Generator) -> dict[str, Tensor]:
    """Draws the values of one block's activation quantizers for one image."""

    def bell(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    bell_shaped = ("q.input", "k.input", "v.input", "q", "k", "v", "proj.input", "fc1.input")
    maps = bell(TOKENS // WINDOW * HEADS, WINDOW, WINDOW).mul_(2).softmax(-1)
    return {name: bell(TOKENS, DIM) for name in bell_shaped} | {
        "attention": maps,
        "fc2.input": F.gelu(bell(TOKENS, 2 * DIM)),
    }


def weights(generator: torch.Generator) -> list[Tensor]:
    """Draws the six weight matrices of one block."""
    shapes = [(DIM, DIM)] * 4 + [(2 * DIM, DIM), (DIM, 2 * DIM)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def timed(search: Callable[[Distribution], Bounds], distributions: list[Distribution]) -> float:
    # A distribution caches sums for its searches. Their cost belongs to the search, so each search gets a fresh one.
    fresh = [Distribution(d.values, d.counts, d.sums, d.squares, d.minimum, d.maximum) for d in distributions]
    start = time.process_time()
    for d in fresh:
        search(d)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    example = activations(generator)
    for images in args.images:
        histograms = {(block, name): Histogram() for block in range(BLOCKS) for name in example}
        start = time.process_time()
        for (_, name), histogram in histograms.items():
            for _ in range(images):
                histogram.update(example[name])
        observing = time.process_time() - start
        values = sum(h.count for h in histograms.values())
        start = time.process_time()
        distributions = [h.distribution() for h in histograms.values()]
        distributions += [Distribution.of(w) for _ in range(BLOCKS) for w in weights(generator)]
        making = time.process_time() - start
        print(f"{images} images: {len(distributions)} quantizers, {values / 1e6:.0f}M values")
        print(f"  observe    {observing:7.2f} s  ({observing / values * 1e9:.1f} ms per million values)")
        print(f"  statistics {making:7.2f} s")
        for bits in args.bits:
            for name, search in SEARCHES.items():
                print(f"  {bits} bits, {name:<16} {timed(partial(search, bits=bits), distributions):7.2f} s")


if __name__ == "__main__":
    main()
