"""What decibels cost: the same bits everywhere beside bits where they matter, as a table and a plot.

    python -m benchmarks.pareto edsr_x4 --sets Set5 --calib DIR --bits 2 3 4 --preset quick --plot edsr.svg
    python -m benchmarks.pareto craft_x4.safetensors --sets Set5 --calib DIR --bits 3 4 --plan paper --time

For each width, the network is quantized once with it everywhere (`uniform`) and once within the same bit operations and
bytes (`allocated`). PSNR is of the simulated network; `--time` adds the milliseconds of the integer network on 64x64
pixels, the least of some runs. `--plot` needs matplotlib. With `--store`, finished rows are kept in a JSON file, and a
run that was cut off goes on from there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import FigureStore, common_options, open_study_network, scores
from fxptq.checkpoint.file import byte_counts
from fxptq.commands.scores import open_sets
from fxptq.commands.source import Source, example_of
from fxptq.engine import check_work, quantize_for
from fxptq.facts import gather_facts
from fxptq.graph.sites import mean_bits
from fxptq.quantized import QuantizedModel
from fxptq.recipe import Recipe

COSTS = {"bytes": "bytes of the file", "operations": "bit operations at the example's size", "ms": "ms at 64x64"}


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 6])
    parser.add_argument("--preset", default="standard", help="the preset whose passes and schemes are used")
    parser.add_argument("--plan", default="", help="the preset whose sites and bits are used; that of --preset")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--store", type=Path, metavar="FILE")
    options = parser.parse_args()
    source = open_study_network(options.network)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    store = FigureStore(options.store) if options.store else None
    rows: list[dict[str, Any]] = []
    print(f"| {source.name} | PSNR, dB | bits w / a | bytes | bit operations | ms |\n|---|---|---|---|---|---|")
    for bits in options.bits:
        for way in ("uniform", "allocated"):
            key = {"network": source.name, "bits": bits, "way": way, "preset": options.preset, "plan": options.plan}
            key |= {"calib": options.calib, "sets": options.sets, "time": options.time, "seed": options.seed}
            row = store.get(key) if store else None
            if row is None:
                q = quantized(source, bits, way, options.preset, options.plan, options.calib, options.seed)
                row = {"bits": bits, "way": way, **figures(q, options.time)}
                row["psnr"] = {name: one["psnr_y"] for name, one in scores(q, sets, source).items()}
                if store:
                    store.put(key, row)
            rows.append(row)
            print(shown(row), flush=True)
    if options.plot:
        plot(rows, options.plot, source.name)


def quantized(source: Source, bits: int, way: str, preset: str, plan: str, calib: str, seed: int) -> QuantizedModel:
    """The network with the same bits everywhere, or within what those cost."""
    recipe = _planned(source.recipe, preset, plan)
    facts = gather_facts(source.model, recipe).checked()
    budget = float(bits) if way == "allocated" else None
    work = check_work(recipe, bits, preset=preset, budget=budget, uniform=way == "uniform", seed=seed)
    return quantize_for(facts, source.model, example_of(facts.recipe), work, calib)


def _planned(recipe: Recipe, preset: str, plan: str) -> Recipe:
    """The recipe whose preset has the sites and bits of another preset."""
    if not plan:
        return recipe
    chosen, other = recipe.preset(preset), recipe.preset(plan).quantize
    table = {
        "images": chosen.images,
        "passes": [{"name": step.name, **step.settings} for step in chosen.passes],
        "quantize": {
            **other.model_dump(),
            "schemes": chosen.quantize.schemes,
            "weight_granularity": chosen.quantize.weight_granularity,
        },
    }
    own = {name: own.model_dump() for name, own in recipe.presets.items()}
    return Recipe.model_validate({**recipe.model_dump(), "presets": {**own, preset: table}})


def figures(q: QuantizedModel, timed: bool) -> dict[str, Any]:
    """What a quantized network costs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        q.save(path)
        size = byte_counts(path).total
    operations = sum(site.macs * site.operands[0].bits * site.operands[-1].bits for site in q.sites if not site.reason)
    return {"bytes": size, "operations": operations, "average": mean_bits(q.sites), "ms": _ms(q) if timed else None}


@torch.no_grad()
def _ms(q: QuantizedModel, runs: int = 9) -> float:
    channels, white = q.task.input.channels, q.task.input.range
    x = torch.rand(1, channels, *q.task.input.sizes.near(64, 64)) * white
    integer = q.to_integer()
    integer(x)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        integer(x)
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


def shown(row: Mapping[str, Any]) -> str:
    psnr = " / ".join(f"{name} {value:.2f}" for name, value in row["psnr"].items())
    ms = "" if row["ms"] is None else f"{row['ms']:.1f}"
    w, a = row["average"]
    return (
        f"| {row['way']}, {row['bits']} bits | {psnr} | {w:.2f} / {a:.2f} | {row['bytes']:,} "
        f"| {row['operations']:.3g} | {ms} |"
    )


def plot(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws PSNR of the first set against each cost that was measured."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  # an extra

    costs = [cost for cost in COSTS if rows[0][cost] is not None]
    figure, axes = plt.subplots(1, len(costs), figsize=(4.5 * len(costs), 3.5), sharey=True, squeeze=False)
    name = next(iter(rows[0]["psnr"]))
    for axis, cost in zip(axes[0], costs, strict=True):
        for way, marker in (("uniform", "o--"), ("allocated", "s-")):
            points = sorted((row[cost], row["psnr"][name]) for row in rows if row["way"] == way)
            axis.plot(*zip(*points, strict=True), marker, label=way)
        axis.set_xlabel(COSTS[cost])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"PSNR on {name}, dB")
    axes[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
