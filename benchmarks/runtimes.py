"""Checkpoints as ONNX files: bytes, equality with the simulation, and time in ONNX Runtime and OpenVINO.

    python -m benchmarks.runtimes small.safetensors other.safetensors [--size 64x64] [--threads 1]

The engines run the same input in turns, in one process; the time is the median of their runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxptq.bench.ways import subject as open_subject
from fxptq.export import runtime
from fxptq.export.onnx_file import to_onnx
from fxptq.export.runtime import Comparison, compare
from fxptq.export.subject import Trial, subject_of
from fxptq.graph import Program
from fxptq.kernels.backend import get_backend
from fxptq.sizes import parse_size

ROUNDS = 15


def openvino(path: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """A file made ready to run in OpenVINO; float operations in float32."""
    from openvino import Core  # noqa: PLC0415  # a peer

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = Core().compile_model(str(path), "CPU", settings)
    return lambda x: compiled([x])[0]


def medians(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each way, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
        run()
    for _ in range(ROUNDS):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def measure(checkpoint: Path, size: str, threads: int) -> None:
    """Prints the rows of one checkpoint."""
    torch.set_num_threads(threads)
    opened = open_subject(checkpoint, None, size)
    quantized, x, white = opened.quantized, opened.x, opened.quantized.task.input.range
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path, plain_path = Path(folder) / "net.onnx", Path(folder) / "float.onnx"
        exported = quantized.export(path, size=parse_size(size))
        plain = Program(opened.network, x)
        plain_path.write_bytes(
            to_onnx(
                plain, subject_of(plain, (x,), quantized.task.input.sizes, size=parse_size(size), white=white), {}
            ).data
        )
        fast = quantized.to_integer(compare=False)
        files = {name: runtime.session(file.read_bytes(), threads) for name, file in (("f", plain_path), ("q", path))}
        ways: dict[str, Callable[[], Any]] = {
            "fxptq integers": lambda: fast(x),
            "torch float32": lambda: opened.network(x),
            "ONNX Runtime, float32": lambda: files["f"]((x,)),
            "ONNX Runtime, this file": lambda: files["q"]((x,)),
        }
        trial = Trial((x,), quantized(x))
        alike: dict[str, Comparison] = {"ONNX Runtime, this file": compare(path.read_bytes(), [trial], white)[0]}
        if importlib.util.find_spec("openvino") is not None:
            engines = {name: openvino(file, threads) for name, file in (("f", plain_path), ("q", path))}
            ways["OpenVINO, float32"] = lambda: engines["f"](x.numpy())
            ways["OpenVINO, this file"] = lambda: engines["q"](x.numpy())
            apart = (torch.from_numpy(np.array(engines["q"](x.numpy()))) - trial.output).double() / white
            psnr = -10 * float(apart.square().mean().clamp(min=1e-30).log10())
            alike["OpenVINO, this file"] = Comparison(tuple(x.shape), float(apart.abs().max()), psnr)
        ms = medians(ways)
    in_float = len(exported.onnx.in_float) if exported.onnx else 0
    print(
        f"\n{checkpoint.stem}: {checkpoint.stat().st_size:,} bytes as .safetensors, {exported.nbytes:,} as .onnx; "
        f"{in_float} of {exported.onnx.sites if exported.onnx else 0} sites in float for runtimes; "
        f"{size}, {threads} thread(s), {get_backend('cpu').install().name}"
    )
    print("| way | ms | times float32 in ONNX Runtime | PSNR against the simulation | largest difference of 255 |")
    print("|---|--:|--:|--:|--:|")
    base = ms["ONNX Runtime, float32"]
    for name, value in ms.items():
        found = alike.get(name)
        equality = f"{found.psnr:.1f} | {255 * found.largest:.2f}" if found else "- | -"
        print(f"| {name} | {value:.1f} | {base / value:.2f} | {equality} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for checkpoint in options.checkpoints:
        measure(checkpoint, options.size, options.threads)


if __name__ == "__main__":
    main()
