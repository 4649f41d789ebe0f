"""Networks of other people at full size: integers beside eager torch and OpenVINO, and the time by operator.

    pip install -e ".[zoo,bench]"
    python -m benchmarks.speed_zoo --sizes 64x64 128x128

The networks are the published configurations, built from spandrel's classes with random weights, because values do not
change the speed; they are calibrated on one random input. All calls run in one thread of one process, in turns,
and the least CPU time of each counts.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fxptq
from benchmarks.profile_kernels import Timed, lines
from benchmarks.zoo.one import declare_missing_operators
from fxptq.bench import openvino
from fxptq.sizes import parse_size

NETWORKS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "SPAN": ("SPAN.__arch.span:SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48, "upscale": 4}, False),
    "SAFMN": ("SAFMN.__arch.safmn:SAFMN", {"dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": 4}, False),
    "DAT-light": (
        "DAT.__arch.DAT:DAT",
        {
            "upscale": 4,
            "in_chans": 3,
            "img_size": 64,
            "img_range": 1.0,
            "depth": [18],
            "embed_dim": 60,
            "num_heads": [6],
        }
        | {"expansion_factor": 2, "resi_connection": "3conv", "split_size": [8, 32], "upsampler": "pixelshuffledirect"},
        True,
    ),
}
"""By name: class below spandrel's architectures, its arguments, and whether it is a transformer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--sizes", nargs="+", default=["64x64"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    declare_missing_operators()
    for name in options.names:
        path, arguments, transformer = NETWORKS[name]
        network = built(path, arguments)
        x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        quantized = fxptq.quantize(network, x, options.bits, calib=[x], preset="quick", scale=4)
        for size in options.sizes:
            measure(name, network, quantized, size, options.rounds, transformer=transformer)


def built(path: str, arguments: dict[str, Any]) -> nn.Module:
    module, kind = path.split(":")
    torch.manual_seed(0)
    model: nn.Module = getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(**arguments)
    return model.eval()


@torch.no_grad()
def measure(
    name: str, network: nn.Module, quantized: fxptq.QuantizedModel, size: str, rounds: int, *, transformer: bool
) -> None:
    x = torch.rand(1, 3, *parse_size(size), generator=torch.Generator().manual_seed(0))
    integer = quantized.to_integer(compile=False)
    calls: dict[str, Callable[[], Any]] = {"eager-fp32": lambda: network(x), "fxptq-int": lambda: integer(x)}
    if importlib.util.find_spec("openvino") is not None:
        calls["openvino-fp32"] = openvino.run(network, x, 1, "f32")
        calls["openvino-int8"] = openvino.run_int8(network, x, 1, transformer)
    least = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds + 1):
        for way, call in calls.items():
            started = time.process_time()
            call()
            if turn:
                least[way] = min(least[way], 1000 * (time.process_time() - started))
    lowering, bits = integer.lowering, f"W{quantized.meta.bits_w}A{quantized.meta.bits_a}"
    print(f"\n{name} x4, {bits}, {size}, one thread, kernels {lowering.backend.name}\n")
    print("| | ms | times faster than eager |\n|---|---:|---:|")
    for way, ms in least.items():
        print(f"| {way} | {ms:.1f} | {least['eager-fp32'] / ms:.2f} |")
    for site, reason in lowering.simulated.items():
        print(f"in float: {site}: {reason}")
    runner = Timed(integer.of(quantized.program.variant((x,))).module)
    for _ in range(rounds):
        runner.run(x)
    print("\n| operator | calls | ms | share | GMAC | GMAC/s | |\n|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(lines(runner, None)), flush=True)


if __name__ == "__main__":
    main()
