"""PSNR of a network after each pass: minmax, percentile, DOBI, DOBI over both bounds, then DQC, then GPTQ.

    python -m benchmarks.accuracy swinir_x4 --sets Set5 --bits 4 3 2
    python -m benchmarks.accuracy craft_x4.safetensors --sets Set5 --calib DIR --plan paper --images 8

The network is a recipe, or a weights file that spandrel recognises. The script prints a Markdown table: a row is a
method, a column a set; figures are PSNR in dB and SSIM, on Y, of the network on integer kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from benchmarks.study import Study, common_options, inputs_of, open_study_network, parsed, scores
from fxptq.commands.scores import open_sets
from fxptq.evaluate.sets import BenchmarkSet
from fxptq.evaluate.tiles import Run
from fxptq.passes.base import run_passes
from fxptq.progress import RichProgress

BOUNDS = {
    "MinMax": ("minmax", {}),
    "Percentile": ("percentile", {}),
    "DOBI, two-sided": ("dobi", {"sided": "two"}),
    "DOBI": ("dobi", {}),
    "DOBI over both bounds": ("dobi2d", {}),
}


def main() -> None:
    parser = common_options(__doc__)
    parser.set_defaults(images=16)
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--plan", default="standard", help="the preset whose choice of sites and widths is used")
    parser.add_argument("--dqc", default="", metavar="KEY=NUMBER,...", help="settings of DQC beyond the preset's")
    options = parser.parse_args()
    source = open_study_network(options.network)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    inputs = inputs_of(source.recipe, options.calib, options.images, options.seed)
    study = Study(source, inputs, source.recipe.preset(options.plan), options.seed, RichProgress())
    print(f"{source.name}, calibrated on {options.calib}, plan of the preset {options.plan}\n")
    print("| bits | method | " + " | ".join(benchmark.name for benchmark in sets) + " |")
    print("|---|---|" + "---|" * len(sets))
    row("32", "float", source.model, study, sets)
    for bits in options.bits:
        run(study, sets, bits, options)


def run(study: Study, sets: Sequence[BenchmarkSet], bits: int, options: argparse.Namespace) -> None:
    context = study.at(bits)
    for label, step in BOUNDS.items():
        run_passes([step], context)
        row(f"W{bits}A{bits}", label, study.integer(context), study, sets)
    settings = dict(next((step.settings for step in study.preset.passes if step.name == "dqc"), {}))
    for label, passes in (
        ("+ DQC", [("dqc", settings | parsed(options.dqc))]),
        ("+ GPTQ", [("moments", {}), ("gptq", {})]),
    ):
        started = time.perf_counter()
        run_passes(passes, context)
        seconds = time.perf_counter() - started
        row(f"W{bits}A{bits}", f"{label}, {seconds:.0f} s", study.integer(context), study, sets)


def row(bits: str, label: str, model: Run, study: Study, sets: Sequence[BenchmarkSet]) -> None:
    by_set = scores(model, sets, study.source).values()
    cells = " | ".join(f"{score['psnr_y']:.2f}/{score['ssim_y']:.4f}" for score in by_set)
    print(f"| {bits} | {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
