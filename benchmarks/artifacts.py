"""Artefacts of a network after each of some passes: mesh of sub-pixel phases, colour shift and bands, in levels of 255.

    python -m benchmarks.artifacts edsr_x4 --bits 4 --calib DIR --passes biases
    python -m benchmarks.artifacts edsr_x4 --bits 4 --calib DIR --passes refit biases

The network is a recipe, or a weights file that spandrel recognises. Pictures are compared with the float network's, on
inputs that no pass has seen. `mesh` is the height of the mesh that all pictures share, and `smooth` the mean height in
the blocks where the float pictures vary least, a tenth of all.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.study import Study, common_options, inputs_of, open_study_network
from fxptq.evaluate.artifacts import Floats, mesh, phase_errors
from fxptq.passes.gate import check_quality
from fxptq.progress import Silent
from fxptq.recipe import PassEntry

SIDE = 32
"""Side in pixels of the blocks that smooth areas are made of."""


def main() -> None:
    parser = common_options(__doc__)
    parser.set_defaults(images=16)
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--unseen", type=int, default=8, help="further inputs, to measure on")
    parser.add_argument("--passes", nargs="*", default=["biases"], help="behind the bounds of dobi2d")
    options = parser.parse_args()
    source = open_study_network(options.network)
    images, described = inputs_of(source.recipe, options.calib, options.images + options.unseen, options.seed)
    study = Study(source, (images[: options.images], described), source.recipe.preset("quick"), options.seed, Silent())
    white = source.recipe.input.range
    context = study.at(options.bits)
    unseen = torch.cat(images[options.images :])
    print("| network | after | error | mesh | smooth | colour shift | banding |\n|---|---|---|---|---|---|---|")
    with torch.no_grad():
        floats = _levels(context.picture.pick(study.teacher(unseen)), white)
        period = floats.shape[2] // unseen.shape[3]
        for name in ("dobi2d", *options.passes):
            reports = study.run(context, [PassEntry(name=name)])
            ours = _levels(context.picture.pick(context.student(unseen)), white)
            context.images, known = images[options.images :], context.images
            figures = check_quality(context, white).figures
            context.images = known
            error = float(np.square(ours - floats).mean())
            whole = float(np.ptp(phase_errors(ours, floats, period), axis=(0, 1)).max())
            smooth = float(np.mean([mesh(a, b, period) for a, b in zip(*_smooth(ours, floats), strict=True)]))
            print(
                f"| {source.name} W{options.bits}A{options.bits} | {name} | {error:.3g} | {whole:.2f} | {smooth:.2f} "
                f"| {figures['colour_shift']:+.2f} | {figures['banding']:.2f} |",
                *(f"\n<!-- {note} -->" for report in reports for note in report.notes),
                flush=True,
            )


def _levels(picture: torch.Tensor, white: float) -> Floats:
    levels: Floats = picture.movedim(-3, -1).double().numpy() * (255 / white)
    return levels


def _smooth(ours: Floats, floats: Floats) -> tuple[Floats, Floats]:
    """The tenth of the blocks of both pictures in which the float picture varies least, [blocks, side, side, C]."""
    count, height, width, channels = floats.shape
    cut = (count, height // SIDE, SIDE, width // SIDE, SIDE, channels)
    blocks = [
        p[:, : cut[1] * SIDE, : cut[3] * SIDE].reshape(cut).swapaxes(2, 3).reshape(-1, SIDE, SIDE, channels)
        for p in (ours, floats)
    ]
    order = blocks[1].std((1, 2)).mean(-1).argsort()[: max(1, len(blocks[1]) // 10)]
    return blocks[0][order], blocks[1][order]


if __name__ == "__main__":
    main()
