"""Integer kernels against the simulation: the scores of a network on either, at 8, 4, 3 and 2 bits.

    python -m benchmarks.exactness swinir_x4
    python -m benchmarks.exactness craft_x4.safetensors --first 25 --nudge 1e-6

Networks are calibrated by the standard preset's bounds on generated pictures; existing checkpoints of
benchmarks.calibration are used. The script prints a Markdown table of PSNR on Y in dB; a cell reads simulated / integer
(difference). With --nudge, the table also shows how far the simulation itself moves when biases and norms change a
little: where values near a tie decide, floats in another order may move it as far. Finished figures are stored in
out/exactness.json and not measured again.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from benchmarks.calibration import checkpoint
from benchmarks.study import ROOT, FigureStore, Study, common_options, inputs_of, open_study_network, scores
from fxptq.api import load
from fxptq.commands.scores import open_sets
from fxptq.data.sources import SYNTHETIC
from fxptq.evaluate.sets import BenchmarkSet
from fxptq.progress import RichProgress
from fxptq.quantized import QuantizedModel


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3, 2])
    parser.add_argument("--first", type=int, help="score only the first pictures of a set that has more")
    parser.add_argument("--nudge", type=float, default=0.0, help="relative change of biases and norms, both ways")
    options = parser.parse_args()
    source = open_study_network(options.network)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    if options.first:
        sets = [cut(benchmark, options.first) for benchmark in sets]
    inputs = inputs_of(source.recipe, SYNTHETIC, options.images, options.seed)
    study = Study(source, inputs, source.recipe.preset("standard"), options.seed, RichProgress())
    store = FigureStore(ROOT / "out/exactness.json")
    rows: dict[int, list[str]] = {bits: [] for bits in options.bits}
    for benchmark in sets:
        for bits, cells in rows.items():
            cells.append(measured(study, bits, benchmark, options.nudge, store))
            print(f"W{bits}A{bits} {benchmark.name} {cells[-1]}", file=sys.stderr, flush=True)
    print(f"{source.name}; simulated / integer (difference), PSNR in dB\n")
    print("| bits | " + " | ".join(benchmark.name for benchmark in sets) + " |")
    print("|---|" + "---|" * len(sets))
    for bits, cells in rows.items():
        print(f"| W{bits}A{bits} | " + " | ".join(cells) + " |")


def cut(benchmark: BenchmarkSet, count: int) -> BenchmarkSet:
    """Cuts a set to its first pictures, and says so in its name; a smaller set stays as it is."""
    if len(benchmark) <= count:
        return benchmark
    return replace(benchmark, name=f"{benchmark.name}, first {count}", makers=benchmark.makers[:count])


def measured(study: Study, bits: int, benchmark: BenchmarkSet, nudge: float, store: FigureStore) -> str:
    """Scores a set and formats the scores as a cell of the table; stored figures are not measured again."""
    key = {**study.key, "bits": bits, "passes": [dict(entry) for entry in study.steps[0][1]], "set": benchmark.name}
    figures = store.get(key)
    if figures is None:
        quantized = calibrated(study, bits)
        runs = {"simulated": quantized, "integer": quantized.to_integer(compile=False)}
        figures = {name: scores(run, [benchmark], study.source)[benchmark.name] for name, run in runs.items()}
        store.put(key, figures)
    simulated, integer = (figures[name]["psnr_y"] for name in ("simulated", "integer"))
    differences = []
    for by in (nudge, -nudge) if nudge else ():
        score = store.get({**key, "nudge": by})
        if score is None:
            run = nudged(calibrated(study, bits), by)
            score = store.put({**key, "nudge": by}, dict(scores(run, [benchmark], study.source)[benchmark.name]))
        differences.append(f"{score['psnr_y'] - simulated:+.3f}")
    cell = f"{simulated:.3f} / {integer:.3f} ({integer - simulated:+.3f})"
    return f"{cell}; nudged {', '.join(differences)}" if differences else cell


@torch.no_grad()
def nudged(quantized: QuantizedModel, by: float) -> QuantizedModel:
    """Scales the biases and norms of the network by 1 + by; its quantizers and weights stay."""
    own = {id(parameter) for quantizer in quantized.program.quantizers.values() for parameter in quantizer.parameters()}
    for parameter in quantized.parameters():
        if parameter.dim() <= 1 and id(parameter) not in own:
            parameter.mul_(1 + by)
    return quantized


def calibrated(study: Study, bits: int) -> QuantizedModel:
    """Loads the network with bounds from its checkpoint, and first makes a checkpoint that is missing."""
    (step, passes), *_ = study.steps
    file = checkpoint(study, bits, step)
    if not file.is_file():
        context = study.at(bits)
        study.run(context, passes)
        with study.finished(context, bits, passes) as quantized:
            quantized.save(file)
    return load(file, study.source.model)


if __name__ == "__main__":
    main()
