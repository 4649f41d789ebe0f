"""Calibration without data against photographs: the scores of a network calibrated on either.

    python -m benchmarks.calibration swinir_x4 --photographs ../shared/data/calib
    python -m benchmarks.calibration craft_x4.safetensors --photographs DIR --dqc steps=50,batch=2

The script prints a Markdown table of PSNR on Y in dB, after the standard preset's bounds and after its DQC; a cell
reads synthetic / photographs (difference). Networks are scored on integer kernels; for each number of bits the first
set is also scored in simulation, and both figures are printed to stderr. Checkpoints and finished rows go to
out/calibration; rows found there are not measured again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import ROOT, FigureStore, Study, common_options, inputs_of, open_study_network, parsed, scores
from fxptq.commands.scores import open_sets
from fxptq.data.sources import SYNTHETIC
from fxptq.evaluate.sets import BenchmarkSet
from fxptq.progress import RichProgress
from fxptq.recipe import PassEntry, Preset

OUT = ROOT / "out/calibration"
AGREEMENT = 0.01  # dB between the simulation and the integer kernels

Row = dict[str, Any]


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--photographs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--dqc", default="", metavar="KEY=NUMBER,...", help="settings of DQC beyond the preset's")
    options = parser.parse_args()
    source = open_study_network(options.network)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    preset = with_dqc(source.recipe.preset("standard"), parsed(options.dqc))
    studies = {
        name: Study(
            source, inputs_of(source.recipe, origin, options.images, options.seed), preset, options.seed, RichProgress()
        )
        for name, origin in (("synthetic", SYNTHETIC), ("photographs", options.photographs))
    }
    store = FigureStore(OUT / "rows.json")
    print(f"{source.name}, {options.images} inputs of either kind; synthetic / photographs (difference), PSNR in dB\n")
    print("| bits | after | " + " | ".join(benchmark.name for benchmark in sets) + " |")
    print("|---|---|" + "---|" * len(sets), flush=True)
    for bits in options.bits:
        both = [measured(study, name, bits, sets, store) for name, study in studies.items()]
        for step in both[0]:
            print(line(bits, step, *(rows[step]["scores"] for rows in both)), flush=True)


def with_dqc(preset: Preset, changes: Mapping[str, object]) -> Preset:
    """Changes the settings of DQC in a preset."""
    passes = tuple(
        PassEntry.model_validate({"name": entry.name, **entry.settings, **(changes if entry.name == "dqc" else {})})
        for entry in preset.passes
    )
    return preset.model_copy(update={"passes": passes})


def measured(study: Study, origin: str, bits: int, sets: Sequence[BenchmarkSet], store: FigureStore) -> dict[str, Row]:
    """Scores the network after each step of the preset; stored rows are not measured again."""
    names = [benchmark.name for benchmark in sets]
    done: tuple[PassEntry, ...] = ()
    keys = {}
    for step, passes in study.steps:
        done += passes
        keys[step] = {**study.key, "bits": bits, "passes": [dict(entry) for entry in done], "sets": names}
    rows = {step: known for step, key in keys.items() if (known := store.get(key)) is not None}
    if len(rows) < len(keys):
        context, done = study.at(bits), ()
        for step, passes in study.steps:
            reports = study.run(context, passes)
            done += passes
            if step in rows:
                continue
            with study.finished(context, bits, done) as quantized:
                file = checkpoint(study, bits, step)
                quantized.save(file)
                row: Row = {
                    "origin": origin,
                    "after": step,
                    "scores": scores(study.integer(context), sets, study.source),
                    "seconds": sum(report.seconds for report in reports),
                    "notes": [note for report in reports for note in report.notes],
                    "checkpoint": file.name,
                }
                if (origin, step) == ("synthetic", study.steps[0][0]):
                    row["simulated"] = scores(quantized, sets[:1], study.source)
                    compare(bits, row["simulated"], row["scores"])
            rows[step] = store.put(keys[step], row)
            print(f"W{bits}A{bits} {origin} after {step}: {row['scores']} {row['notes']}", file=sys.stderr, flush=True)
    return rows


def checkpoint(study: Study, bits: int, step: str) -> Path:
    """The path of the checkpoint of a network calibrated so."""
    return OUT / f"{study.source.name}_w{bits}a{bits}_{step.lower()}_{study.key['inputs']}.safetensors"


def compare(
    bits: int, simulated: Mapping[str, Mapping[str, float]], integer: Mapping[str, Mapping[str, float]]
) -> None:
    """Prints the difference between integer kernels and simulation to stderr, with a remark if it is too large."""
    for name, score in simulated.items():
        ours, theirs = integer[name]["psnr_y"], score["psnr_y"]
        verdict = "" if abs(ours - theirs) < AGREEMENT else f": more than {AGREEMENT} dB apart"
        print(f"W{bits}A{bits} on {name}: simulated {theirs:.3f}, integer {ours:.3f}{verdict}", file=sys.stderr)


def line(
    bits: int, step: str, ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]
) -> str:
    """Makes a row of the table."""
    cells = []
    for name in ours:
        synthetic, photographs = ours[name]["psnr_y"], theirs[name]["psnr_y"]
        cells.append(
            f"{synthetic:.2f} / {photographs:.2f} ({round(synthetic - photographs, 2) + 0.0:+.2f})"
        )  # no -0.00
    return f"| W{bits}A{bits} | {step} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
