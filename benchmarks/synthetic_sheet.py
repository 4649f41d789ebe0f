"""Draws docs/images/synthetic_sheet.png, a contact sheet of generated calibration pictures at half size.

python benchmarks/synthetic_sheet.py [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from fxptq.data.resize import imresize
from fxptq.data.synthetic import sheet

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "synthetic_sheet.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    picture = Image.fromarray(imresize(sheet(options.seed), 1 / 2))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    # With a palette, the file of a picture full of texture stays small.
    picture.quantize(200).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
