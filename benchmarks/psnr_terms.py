"""The three terms of a quantized network's squared error on benchmark pictures, by picture; docs/why.md says why.

    python -m benchmarks.psnr_terms craft_x4.safetensors --plan paper --preset standard --bits 4 --sets Set5 --calib DIR

With the original picture h, the float output f and the quantized output q, these are (f - h)^2, (q - f)^2 and
2 (f - h)(q - f), as means over luma of white 1 and in units of 1e-5. The last column is the drop of PSNR in dB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.study import Study, common_options, inputs_of, open_study_network, preset_on_plan
from fxptq.commands.scores import open_sets, score_sets
from fxptq.evaluate.metrics import luma
from fxptq.evaluate.sets import Pair
from fxptq.evaluate.tiles import Run
from fxptq.progress import RichProgress, Silent

Luma = npt.NDArray[np.float64]


def main() -> None:
    parser = common_options(__doc__)
    parser.set_defaults(images=0)
    parser.add_argument("--calib", default="synthetic", help="a folder of pictures, or synthetic")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--preset", default="standard", help="the preset whose passes and schemes are used")
    parser.add_argument("--plan", default="", help="the preset whose sites and bits are used; that of --preset")
    options = parser.parse_args()
    source = open_study_network(options.network)
    preset = preset_on_plan(source.recipe, options.preset, options.plan)
    images = inputs_of(source.recipe, options.calib, options.images or preset.images, options.seed)
    sets = open_sets([f"{name}={options.benchmarks / name}" for name in options.sets], source.recipe)
    border = max(1, source.recipe.scale)

    def outputs(run: Run) -> dict[tuple[str, str], tuple[Luma, Luma]]:
        """By set and picture, the luma of the original and of the network's output, without the border."""
        found: dict[tuple[str, str], tuple[Luma, Luma]] = {}

        def see(name: str, pair: Pair, output: Tensor) -> None:
            shown = (output[0] / source.recipe.input.range).clamp(0, 1) * 255
            picture = shown.permute(1, 2, 0).double().cpu().numpy()
            inside = slice(border, -border)
            original = pair.hr[: picture.shape[0], : picture.shape[1]]
            found[name, pair.name] = luma(original)[inside, inside] / 255, luma(picture)[inside, inside] / 255

        score_sets(run, sets, source.recipe, Silent(), source.name, seen=see)
        return found

    study = Study(source, images, preset, options.seed, RichProgress())
    context = study.at(options.bits)
    study.run(context, preset.passes)
    with torch.no_grad():
        floats, quantized = outputs(study.teacher), outputs(context.student)
    print("| set | picture | float | ours to float | cross | drop |\n|---|---|---|---|---|---|")
    for (name, picture), (original, ours) in quantized.items():
        reference = floats[name, picture][1]
        own, added = np.square(reference - original).mean(), np.square(ours - reference).mean()
        cross = 2 * ((reference - original) * (ours - reference)).mean()
        drop = 10 * np.log10((own + added + cross) / own)
        print(f"| {name} | {picture} | {own * 1e5:.2f} | {added * 1e5:.2f} | {cross * 1e5:+.2f} | {drop:.3f} |")


if __name__ == "__main__":
    main()
