"""Draws docs/images/comparison.png: one generated picture in float, W4A4, W3A3, W2A2, bicubic and ground truth.

    for b in 4 3 2; do fxptq quantize --recipe edsr_x4 --w $b --a $b --out w$b.safetensors; done
    python -m benchmarks.comparison_picture w4.safetensors w3.safetensors w2.safetensors

Each part is a crop of the picture, enlarged twice without interpolation, with the PSNR (on Y) of the whole picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import fxptq
from fxptq.commands.source import open_network
from fxptq.evaluate.contrast import plain_of
from fxptq.evaluate.metrics import psnr_y
from fxptq.evaluate.sets import samples
from fxptq.io.images import to_image, to_tensor

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "comparison.png"
SIDE, TIMES, LINE = 120, 2, 40  # pixels of a crop, its enlargement, and the height of the text below it


def main() -> None:
    """Restores one picture by each network and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs=3, type=Path, help="of one bundled recipe")
    parser.add_argument("--sample", type=int, default=1, help="the number of the generated picture")
    parser.add_argument("--at", type=int, nargs=2, default=(20, 40), help="row and column of the crop")
    options = parser.parse_args()
    networks = [fxptq.load(path) for path in options.checkpoints]
    source = open_network(networks[0].meta.recipe)
    recipe = source.recipe
    pair = list(samples(recipe.task, count=options.sample + 1, size=48, sizes=recipe.input.sizes))[options.sample]
    x = to_tensor(pair.lr, recipe.input.range)

    def restored(network: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            return to_image(network(x), recipe.input.range)

    pictures = {"float": restored(source.model)}
    pictures |= {f"W{q.meta.bits_w}A{q.meta.bits_a}": restored(q) for q in networks}
    pictures |= {"bicubic": plain_of(pair, recipe.task), "ground truth": pair.hr}
    draw(pictures, pair.hr, recipe.scale, options.at).quantize(200).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


def draw(pictures: dict[str, np.ndarray], truth: np.ndarray, scale: int, at: tuple[int, int]) -> Image.Image:
    """Crops in two rows of three, each with its name and its PSNR."""
    side, top, left = SIDE * TIMES, *at
    sheet = Image.new("RGB", (3 * (side + 8) - 8, 2 * (side + LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for index, (name, picture) in enumerate(pictures.items()):
        x, y = index % 3 * (side + 8), index // 3 * (side + LINE)
        crop = Image.fromarray(picture[top : top + SIDE, left : left + SIDE])
        sheet.paste(crop.resize((side, side), Image.Resampling.NEAREST), (x, y))
        score = "" if picture is truth else f"  {psnr_y(picture, truth, scale):.2f} dB"
        print(f"{name}{score}")
        pen.text((x + side / 2, y + side + 8), f"{name}{score}", fill="black", font=font, anchor="ma")
    return sheet


if __name__ == "__main__":
    main()
