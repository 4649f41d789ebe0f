"""PSNR of a network after each pass: minmax, percentile, DOBI, DOBI over both bounds, and DQC.

    python benchmarks/accuracy.py swinir_x4 --eval Set5=../shared/data/benchmarks/Set5 --bits 4 3 2
    python benchmarks/accuracy.py craft_x4.safetensors --eval Set5=DIR --calib DIR --plan paper

    python benchmarks/accuracy.py craft_x4.safetensors --eval Set5=DIR --calib DIR --plan paper
a set; figures are PSNR in dB and SSIM, on Y.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch

from fxptq.api import plan_of
from fxptq.commands.network import Source, example_of, open_network
from fxptq.commands.scores import open_sets, score_sets
from fxptq.data.sources import calibration_images
from fxptq.evaluate.sets import BenchmarkSet
from fxptq.graph import Bits, Program
from fxptq.io.state import round_floats
from fxptq.passes.base import Context, run_passes
from fxptq.passes.progress import RichProgress, Silent

BOUNDS = {
    "MinMax": ("minmax", {}),
    "Percentile": ("percentile", {}),
    "DOBI, two-sided": ("dobi", {"sided": "two"}),
    "DOBI": ("dobi", {}),
    "DOBI over both bounds": ("dobi2d", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a recipe's name, or a weights file that spandrel recognises")
    parser.add_argument("--eval", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--plan", default="standard", help="the preset whose choice of sites and widths is used")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--dqc", default="", metavar="KEY=VALUE,...", help="settings of DQC beyond the preset's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    path = Path(options.network)
    source = open_network(None, weights=path) if path.is_file() else open_network(options.network)
    sets = open_sets(options.eval, source.recipe)
    print(f"{source.name}, calibrated on {options.calib}, plan of the preset {options.plan}\n")
    print("| bits | method | " + " | ".join(benchmark.name for benchmark in sets) + " |")
    print("|---|---|" + "---|" * len(sets))
    row("32", "float", source.model, source, sets)
    for bits in options.bits:
        run(source, sets, bits, options)


def run(source: Source, sets: list[BenchmarkSet], bits: int, options: argparse.Namespace) -> None:
    recipe, task = source.recipe, source.recipe.input
    preset = recipe.preset(options.plan)
    rounded = copy.deepcopy(source.model)
    if preset.quantize.float_dtype == "fp16":
        round_floats(rounded, torch.float16)
    student = Program(rounded, example_of(recipe), plan_of(preset.quantize, Bits(bits, bits)))
    teacher = Program(source.model, example_of(recipe), twin=student)
    images, _ = calibration_images(
        options.calib,
        recipe.task,
        channels=task.channels,
        value_range=task.range,
        multiple=task.multiple,
        count=options.images,
        size=options.size,
        seed=options.seed,
    )
    context = Context(student, teacher, images, seed=options.seed, progress=RichProgress())
    run_passes([("observe", {})], context)
    for label, step in BOUNDS.items():
        run_passes([step], context)
        row(f"W{bits}A{bits}", label, student, source, sets)
    settings = dict(next((step.settings for step in preset.passes if step.name == "dqc"), {}))
    settings |= {key: float(value) if "." in value or "e" in value else int(value) for key, value in pairs(options.dqc)}
    started = time.perf_counter()
    run_passes([("dqc", settings)], context)
    row(f"W{bits}A{bits}", f"+ DQC, {time.perf_counter() - started:.0f} s", student, source, sets)


def pairs(text: str) -> list[tuple[str, str]]:
    return [(part.split("=")[0], part.split("=")[1]) for part in text.split(",") if part]


def row(bits: str, label: str, model: Program, source: Source, sets: list[BenchmarkSet]) -> None:
    scores = score_sets(model, sets, source.recipe, Silent(), label)
    cells = " | ".join(f"{score.mean.psnr_y:.2f}/{score.mean.ssim_y:.4f}" for score in scores)
    print(f"| {bits} | {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
