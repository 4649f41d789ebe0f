"""PSNR and SSIM of networks after each pass of a preset: one table, network x bits x pass x set.

    python -m benchmarks.accuracy
    python -m benchmarks.accuracy craft_x4.safetensors --plan paper --sets Set5 --bits 4 3 --calib DIR --seeds 0 1 2

A network is a recipe, or a weights file that spandrel recognises; a file that is absent is skipped with a line. The
passes are those of `--preset`; with `--bounds`, rows of other searches for bounds stand before them. The error is the
mean square of the difference to the float network's output, on inputs that no pass has seen, in units of white. With
`--held-out N`, N further pictures of the folder of calibration are a set to score on; many of them tell small
differences, which five pictures do not. Figures and the state after each pass are kept in a folder: a run that was cut
off goes on, and another set is scored on the states that are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import (
    ROOT,
    FigureStore,
    Study,
    common_options,
    inputs_of,
    open_study_network,
    preset_on_plan,
    scores,
)
from fxptq.budget import with_budget
from fxptq.commands.scores import open_sets
from fxptq.evaluate.sets import BenchmarkSet, held_out
from fxptq.evaluate.tiles import Run
from fxptq.passes.base import Context, QuantizedNetwork
from fxptq.passes.judge import Snapshot
from fxptq.progress import RichProgress
from fxptq.recipe import PassEntry

ZOO = ROOT / "../shared/data/zoo"
NETWORKS = ("swinir_x4", "edsr_x4", str(ZOO / "craft_x4.safetensors"), str(ZOO / "DAT_light_x4.pth"))
OBSERVE = PassEntry(name="observe")
BOUNDS = (
    PassEntry(name="minmax"),
    PassEntry(name="percentile"),
    PassEntry.model_validate({"name": "dobi", "sided": "two"}),
    PassEntry(name="dobi"),
)


def main() -> None:
    parser = common_options(__doc__, networks=NETWORKS)
    parser.set_defaults(images=0)
    parser.add_argument("--calib", default="synthetic", help="a folder of pictures, or synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--preset", default="quick", help="the preset whose passes and schemes are used")
    parser.add_argument("--plan", default="", help="the preset whose sites and bits are used; that of --preset")
    parser.add_argument("--uniform", action="store_true", help="the planned bits, as `fxptq quantize --uniform`")
    parser.add_argument("--dqc", default="", metavar="A=1,B=2", help="other settings of the preset's distillation")
    parser.add_argument("--granularity", choices=["channel", "tensor"], default="channel", help="bounds of weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--unseen", type=int, default=4, help="further inputs, for the error of the output")
    parser.add_argument("--held-out", type=int, default=0, metavar="N", help="score on N further pictures of --calib")
    parser.add_argument("--bounds", action="store_true", help="rows of other searches for bounds, too")
    parser.add_argument("--last", action="store_true", help="a row for the last pass alone, in half of the time")
    parser.add_argument("--integers", action="store_true", help="score on integer kernels instead of the simulation")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"), help="where rows and states are kept")
    options = parser.parse_args()
    store = FigureStore(options.out / "rows.json")
    columns = [*options.sets, *([_held_out(options.held_out)] if options.held_out else [])]
    print("| network | bits | seed | after | seconds | error | " + " | ".join(columns) + " |")
    print("|---" * (6 + len(columns)) + "|")
    for name in options.networks:
        if name.endswith((".pth", ".safetensors", ".pt")) and not Path(name).is_file():
            print(f"<!-- {name} is not there, and is skipped -->", flush=True)
            continue
        for seed in options.seeds:
            table = Table(name, seed, options, store)
            for bits in options.bits:
                table.rows(bits)


class Table:
    """The rows of one network and seed.

    Args:
        name: a recipe's name, or a weights file.
        seed: seed of all random numbers.
        options: the command's.
        store: finished rows.
    """

    def __init__(self, name: str, seed: int, options: argparse.Namespace, store: FigureStore) -> None:
        self._options = options
        source = open_study_network(name)
        preset = preset_on_plan(source.recipe, options.preset, options.plan, options.granularity)
        passes = with_budget(preset.passes, None, uniform=True) if options.uniform else preset.passes
        preset = preset.model_copy(update={"passes": tuple(_changed(entry, options.dqc) for entry in passes)})
        count = options.images or preset.images
        images, described = inputs_of(source.recipe, options.calib, count + options.unseen, seed)
        self._unseen = images[count:]
        self._study = Study(source, (images[:count], described), preset, seed, RichProgress())
        self._sets: Sequence[BenchmarkSet] = [
            *open_sets([f"{each}={options.benchmarks / each}" for each in options.sets], source.recipe),
            *([self._further(count + options.unseen)] if options.held_out else []),
        ]
        self._store = store
        self._float_row()

    def rows(self, bits: int) -> None:
        """Measures and prints the rows of one number of bits."""
        for entry in BOUNDS if self._options.bounds else ():
            self._chain(bits, (OBSERVE, entry))
        self._chain(bits, self._study.preset.passes)

    def _further(self, start: int) -> BenchmarkSet:
        """Pictures of the source of the calibration inputs that nothing else uses."""
        recipe, count = self._study.source.recipe, self._options.held_out
        task, seed = recipe.input, self._study.seed
        found = held_out(
            self._options.calib,
            recipe.task,
            channels=task.channels,
            start=start,
            count=count,
            size=min(task.size),
            sizes=task.sizes,
            seed=seed,
        )
        return replace(found, name=_held_out(count))

    def _chain(self, bits: int, passes: Sequence[PassEntry]) -> None:
        """The rows after each pass but `observe`, or after the last; what is kept is not computed again."""
        keys = [self._key(bits, passes[: index + 1]) for index in range(len(passes))]
        shown = [index for index, entry in enumerate(passes) if entry.name != "observe"]
        context: Context | None = None
        behind = -1
        for index in shown[-1:] if self._options.last else shown:
            if not self._is_known(keys[index]):
                kept = [i for i in range(behind + 1, index + 1) if self._state(keys[i]).is_file()]
                if kept or context is None:
                    context = self._study.at(bits, observe=False)
                if kept:
                    _load(context.student, self._state(keys[kept[-1]]))
                    behind = kept[-1]
                for i in range(behind + 1, index + 1):
                    self._run(context, passes[i], keys[i])
                behind = index
                self._measure(context, keys[index])
            self._print(bits, passes[index], keys[index])

    def _run(self, context: Context, entry: PassEntry, key: dict[str, Any]) -> None:
        """Runs a pass, and keeps its time and the state behind it."""
        started = time.process_time()
        self._study.run(context, [entry])
        self._store.put({**key, "figure": "seconds"}, {"seconds": time.process_time() - started})
        if entry.name != "observe":
            _save(context.student, self._state(key))

    def _measure(self, context: Context, key: dict[str, Any]) -> None:
        """Measures what is not known yet of a state."""
        if self._store.get(self._error_key(key)) is None:
            self._store.put(self._error_key(key), {"error": self._error(context)})
        sets = [each for each in self._sets if self._store.get(self._score_key(key, each.name)) is None]
        if sets:
            self._score(self._study.integer(context) if self._options.integers else context.student, key, sets)

    def _float_row(self) -> None:
        key = {**self._study.key, "bits": 32}
        sets = [each for each in self._sets if self._store.get(self._score_key(key, each.name)) is None]
        self._score(self._study.source.model, key, sets)
        self._print(32, PassEntry(name="float"), key)

    def _key(self, bits: int, passes: Sequence[PassEntry]) -> dict[str, Any]:
        """What a state depends on."""
        return {**self._study.key, "bits": bits, "passes": [entry.model_dump() for entry in passes]}

    def _error_key(self, key: dict[str, Any]) -> dict[str, Any]:
        return {**key, "figure": "error", "unseen": self._options.unseen}

    def _score_key(self, key: dict[str, Any], name: str) -> dict[str, Any]:
        return {**key, "figure": "score", "set": name, "integers": self._options.integers}

    def _is_known(self, key: dict[str, Any]) -> bool:
        wanted = [self._error_key(key), *(self._score_key(key, each.name) for each in self._sets)]
        return all(self._store.get(each) is not None for each in wanted)

    def _state(self, key: dict[str, Any]) -> Path:
        return self._options.out / f"{self._store.digest(key)}.pt"

    @torch.no_grad()
    def _error(self, context: Context) -> float:
        total, count = 0.0, 0
        for x in self._unseen:
            off = context.picture.pick(context.student(x)) - context.picture.pick(context.teacher(x))
            total, count = total + float(off.double().square().sum()), count + off.numel()
        return total / max(1, count) / self._study.source.recipe.input.range**2

    def _score(self, model: Run, key: dict[str, Any], sets: Sequence[BenchmarkSet]) -> None:
        for each in sets:
            score = scores(model, [each], self._study.source)[each.name]
            text = f"{score['psnr_y']:.2f}/{score['ssim_y']:.4f}"
            self._store.put(self._score_key(key, each.name), {"score": text})

    def _print(self, bits: int, entry: PassEntry, key: dict[str, Any]) -> None:
        sided = entry.settings.get("sided")
        after = f"{entry.name}, {sided}-sided" if sided else entry.name
        name = "float" if bits == 32 else f"W{bits}A{bits}"
        seconds = (self._store.get({**key, "figure": "seconds"}) or {"seconds": 0.0})["seconds"]
        error = (self._store.get(self._error_key(key)) or {"error": 0.0})["error"]
        found = (self._store.get(self._score_key(key, each.name)) or {"score": ""} for each in self._sets)
        figures = f"{seconds:.0f} | {error:.3g} | " + " | ".join(score["score"] for score in found)
        print(f"| {self._study.source.name} | {name} | {self._study.seed} | {after} | {figures} |", flush=True)


def _held_out(count: int) -> str:
    return f"{count} held out"


def _changed(entry: PassEntry, dqc: str) -> PassEntry:
    """The entry of a pass, with other settings if it is the distillation."""
    if entry.name != "dqc" or not dqc:
        return entry
    pairs = (pair.split("=") for pair in dqc.split(","))
    return PassEntry.model_validate({**entry.model_dump(), **{name: json.loads(value) for name, value in pairs}})


def _save(student: QuantizedNetwork, file: Path) -> None:
    snapshot = Snapshot.of(student, student.quantizers)
    vectors = {name: vector.detach().clone() for name, vector in student.vectors().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    bits = {key: quantizer.bits for key, quantizer in student.quantizers.items()}
    torch.save((bits, snapshot.stored, snapshot.weights, snapshot.biases, vectors), file)


@torch.no_grad()
def _load(student: QuantizedNetwork, file: Path) -> None:
    bits, stored, weights, biases, vectors = torch.load(file, weights_only=True)
    student.set_bits(bits)
    Snapshot(student, stored, weights, biases).restore()
    for name, vector in student.vectors().items():
        vector.copy_(vectors[name])
    for quantizer in student.quantizers.values():
        quantizer.mode = "on"


if __name__ == "__main__":
    main()
