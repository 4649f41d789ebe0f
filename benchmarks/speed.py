"""Milliseconds and memory of fxptq's integers beside torch, OpenVINO and ONNX Runtime: the tables of performance.md.

    pip install -e ".[bench]"
    python benchmarks/speed.py swinir.safetensors edsr.safetensors --threads 1 2 --sizes 64x64 128x128 320x180

Each table is a run of `fxptq bench` in a process of its own, which measures all ways in turns. Finished measurements
are stored in --out and not repeated; --fresh repeats them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", nargs="+", default=["64x64", "128x128", "320x180"])
    parser.add_argument("--ways", nargs="+", default=[], metavar="WAY")
    parser.add_argument("--out", type=Path, default=Path("out/speed"))
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for checkpoint in options.checkpoints:
        for threads in options.threads:
            runs = [measured(checkpoint, size, threads, options) for size in options.sizes]
            print(f"\n{checkpoint.stem}, {threads} thread{'s' * (threads > 1)}, kernels {runs[0]['kernels']}\n")
            table(runs)


def measured(checkpoint: Path, size: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    file = options.out / f"{checkpoint.stem}_{size}_{threads}.json"
    if options.fresh or not file.exists():
        only = ["--ways", ",".join(options.ways)] if options.ways else []
        program = "import sys; from fxptq.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "bench", str(checkpoint), "--size", size, "--threads", str(threads)]
        # The command is the running interpreter with fxptq's own program.
        subprocess.run([*command, *only, "--json", str(file)], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    run: dict[str, Any] = json.loads(file.read_text())
    return run


def table(runs: list[dict[str, Any]]) -> None:
    """Prints a row for each way, with milliseconds, speed-up over eager, and peak and working memory at each size."""
    print("| |" + "".join(f" {run['size']} | | MB (working) |" for run in runs))
    print("|---|" + "---:|---:|---:|" * len(runs))
    for name in dict.fromkeys(row["name"] for run in runs for row in run["rows"]):
        print(f"| {name} |" + "".join(cells(run, name) for run in runs))


def cells(run: dict[str, Any], name: str) -> str:
    rows = {row["name"]: row for row in run["rows"]}
    row, eager = rows.get(name), rows.get("eager-fp32")
    if row is None:
        return " - | | |"
    faster = f"{eager['ms'] / row['ms']:.2f}x" if eager else ""
    memory = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} ({row['working_mb']:.0f})"
    return f" {row['ms']:.1f} ms | {faster} | {memory} |"


if __name__ == "__main__":
    main()
