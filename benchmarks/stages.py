"""The error of a network after each pass of a preset, on inputs that no pass has seen, and PSNR on benchmark sets.

    python -m benchmarks.stages swinir_x4 --sets Set5 --bits 4 3 --calib DIR
    python -m benchmarks.stages craft_x4.safetensors --sets Set5 --bits 4 3 2 --calib DIR --plan paper

The network is a recipe, or a weights file that spandrel recognises. `--preset` names the passes and schemes, `--plan`
the preset whose choice of sites and bits is used. The script prints a Markdown table; figures are of the simulated
network. Sets are scored before the first pass that changes maps or weights, and at the end.
"""

from __future__ import annotations

import time

import torch

from benchmarks.study import Study, common_options, inputs_of, open_study_network, scores
from fxptq.commands.scores import open_sets
from fxptq.progress import Silent


def main() -> None:
    parser = common_options(__doc__)
    parser.set_defaults(images=16)
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--preset", default="accurate", help="the preset whose passes and schemes are used")
    parser.add_argument("--plan", default="", help="the preset whose sites and bits are used; that of --preset")
    parser.add_argument("--granularity", choices=["channel", "tensor"], default="channel")
    parser.add_argument("--unseen", type=int, default=4, help="further inputs, for the error of the output")
    parser.add_argument("--without", nargs="*", default=[], metavar="PASS", help="passes to leave out")
    parser.add_argument("--every", action="store_true", help="score the sets after every pass")
    options = parser.parse_args()
    source = open_study_network(options.network)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    images, described = inputs_of(source.recipe, options.calib, options.images + options.unseen, options.seed)
    unseen = torch.cat(images[options.images :])
    preset = source.recipe.preset(options.preset)
    plan = source.recipe.preset(options.plan or options.preset).quantize
    changes = {"schemes": preset.quantize.schemes, "weight_granularity": options.granularity}
    preset = preset.model_copy(update={"quantize": plan.model_copy(update=changes)})
    study = Study(source, (images[: options.images], described), preset, options.seed, Silent())
    print(f"{source.name}, calibrated on {options.calib}, {options.images} inputs, seed {options.seed}\n")
    print("| bits | pass | CPU seconds | squared error, unseen inputs | " + " | ".join(s.name for s in sets) + " |")
    print("|---|---|---|---|" + "---|" * len(sets))
    passes = [entry for entry in preset.passes if entry.name not in options.without]
    for bits in options.bits:
        context = study.at(bits)
        with torch.no_grad():
            reference = context.picture.pick(study.teacher(unseen))
        for index, entry in enumerate(passes):
            started = time.process_time()
            reports = study.run(context, [entry])
            seconds = time.process_time() - started
            if entry.name == "observe":
                continue
            last = index == len(passes) - 1
            scored = options.every or last or entry.name in ("dobi", "dobi2d")
            with torch.no_grad():
                error = float((context.picture.pick(context.student(unseen)) - reference).square().mean())
            by_set = scores(context.student, sets, source).values() if scored else []
            cells = [f"{score['psnr_y']:.2f}/{score['ssim_y']:.4f}" for score in by_set] or [""] * len(sets)
            print(f"| W{bits}A{bits} | {entry.name} | {seconds:.0f} | {error:.3g} | {' | '.join(cells)} |", flush=True)
            for note in (note for report in reports for note in report.notes):
                print(f"<!-- {note} -->", flush=True)


if __name__ == "__main__":
    main()
