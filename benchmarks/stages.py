"""The error of a network after each pass of a preset, on inputs that no pass has seen, and PSNR on benchmark sets.

    python -m benchmarks.stages swinir_x4 --sets Set5 --bits 3 --calib DIR
    python -m benchmarks.stages craft_x4.safetensors --sets Set5 --bits 3 --calib DIR --plan paper --state craft3

The network is a recipe, or a weights file that spandrel recognises. `--preset` names the passes and schemes, `--plan`
the preset whose choice of sites and bits is used. The script prints rows of a Markdown table; figures are of the
simulated network, and sets are scored after the last pass. With `--state`, the quantizers, weights and biases after
each pass are kept in a folder, and a run with the same options goes on from there.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from benchmarks.study import Study, common_options, inputs_of, open_study_network, scores
from fxptq.commands.scores import open_sets
from fxptq.passes.base import QuantizedNetwork
from fxptq.passes.judge import Snapshot
from fxptq.progress import Silent


def main() -> None:
    parser = common_options(__doc__)
    parser.set_defaults(images=16)
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--preset", default="accurate", help="the preset whose passes and schemes are used")
    parser.add_argument("--plan", default="", help="the preset whose sites and bits are used; that of --preset")
    parser.add_argument("--granularity", choices=["channel", "tensor"], default="channel")
    parser.add_argument("--unseen", type=int, default=4, help="further inputs, for the error of the output")
    parser.add_argument("--without", nargs="*", default=[], metavar="PASS", help="passes to leave out")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="where the state after each pass is kept")
    parser.add_argument("--most", type=int, default=100, help="number of passes after which the run stops")
    options = parser.parse_args()
    source = open_study_network(options.network)
    images, described = inputs_of(source.recipe, options.calib, options.images + options.unseen, options.seed)
    unseen = torch.cat(images[options.images :])
    preset = source.recipe.preset(options.preset)
    plan = source.recipe.preset(options.plan or options.preset).quantize
    changes = {"schemes": preset.quantize.schemes, "weight_granularity": options.granularity}
    preset = preset.model_copy(update={"quantize": plan.model_copy(update=changes)})
    study = Study(source, (images[: options.images], described), preset, options.seed, Silent())
    passes = [entry for entry in preset.passes if entry.name not in {"observe", *options.without}]
    files = [options.state / f"{index}.pt" if options.state else None for index in range(len(passes))]
    done = sum(file is not None and file.is_file() for file in files)
    context = study.at(options.bits, observe=done == 0)
    if done:
        _load(context.student, files[done - 1])
    with torch.no_grad():
        reference = context.picture.pick(study.teacher(unseen))
    for index, entry in list(enumerate(passes))[done : done + options.most]:
        started = time.process_time()
        reports = study.run(context, [entry])
        seconds = time.process_time() - started
        if files[index] is not None:
            _save(context.student, files[index])
        with torch.no_grad():
            error = float((context.picture.pick(context.student(unseen)) - reference).square().mean())
        print(f"| {source.name} W{options.bits}A{options.bits} | {entry.name} | {seconds:.0f} s | {error:.3g} |")
        for note in (note for report in reports for note in report.notes):
            print(f"<!-- {note} -->", flush=True)
    if done + options.most >= len(passes):
        sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
        for name, score in scores(context.student, sets, source).items():
            figures = f"{score['psnr_y']:.2f}/{score['ssim_y']:.4f}"
            print(f"| {source.name} W{options.bits}A{options.bits} | {name} | {figures} |")


def _save(student: QuantizedNetwork, file: Path) -> None:
    snapshot = Snapshot.of(student, student.quantizers)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save((snapshot.stored, snapshot.weights, snapshot.biases), file)


def _load(student: QuantizedNetwork, file: Path) -> None:
    Snapshot(student, *torch.load(file, weights_only=True)).restore()
    for quantizer in student.quantizers.values():
        quantizer.mode = "on"


if __name__ == "__main__":
    main()
