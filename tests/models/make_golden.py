"""Makes tests/models/golden from the plain reference: `python tests/models/make_golden.py`.

A file holds inputs and outputs, [C, H, W] float64, and the configuration. The weights are not stored: they follow from
the names and shapes (`reference.hashed`), shapes from the network under test.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))
import reference

from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR

SWIN = {
    "in_chans": 3,
    "img_size": 8,
    "window_size": 4,
    "img_range": 1.0,
    "depths": [2, 1],
    "embed_dim": 8,
    "num_heads": [2, 4],
    "mlp_ratio": 2,
    "resi_connection": "1conv",
}
SIZES = [(8, 8), (9, 7), (3, 13)]  # of the stored masks; odd; less than a window
CASES: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "swinir_light_x3": ({**SWIN, "upscale": 3, "upsampler": "pixelshuffledirect"}, SIZES),
    "swinir_position": ({**SWIN, "upscale": 2, "upsampler": "pixelshuffledirect", "ape": True}, SIZES[:1]),
    "swinir_classical_x2": ({**SWIN, "upscale": 2, "upsampler": "pixelshuffle"}, SIZES[:2]),
    "swinir_real_x2": (
        {**SWIN, "upscale": 2, "upsampler": "nearest+conv", "resi_connection": "3conv", "qkv_bias": False},
        SIZES[:2],
    ),
    "swinir_jpeg": (
        {**SWIN, "in_chans": 1, "img_size": 9, "window_size": 3, "img_range": 255.0, "upscale": 1, "upsampler": ""},
        [(9, 9), (7, 8)],
    ),
    "edsr_x2": ({"n_resblocks": 2, "n_feats": 4, "scale": 2, "res_scale": 0.1, "rgb_range": 255}, [(5, 7)]),
    "edsr_x3": ({"n_resblocks": 1, "n_feats": 4, "scale": 3, "res_scale": 1.0, "rgb_range": 1.0}, [(6, 4)]),
    "edsr_x4": ({"n_resblocks": 2, "n_feats": 4, "scale": 4, "res_scale": 1.0, "rgb_range": 255}, [(5, 5)]),
}


def main() -> None:
    """Writes every case."""
    folder = Path(__file__).parent / "golden"
    folder.mkdir(exist_ok=True)
    for name, (config, sizes) in CASES.items():
        is_edsr = "n_feats" in config
        model = EDSR(**config) if is_edsr else SwinIR(**config)
        weights = {key: reference.hashed(key, t.shape).astype(np.float64) for key, t in model.state_dict().items()}
        run, gain = (reference.edsr, config["rgb_range"]) if is_edsr else (reference.swinir, 1.0)
        tensors = {}
        for index, (height, width) in enumerate(sizes):
            shape = (config.get("in_chans", 3), height, width)
            image = 4 * reference.hashed(f"image {index}", [math.prod(shape)]).reshape(shape).astype(np.float64) + 0.5
            tensors[f"input/{index}"] = image * gain
            # Contiguous, because safetensors writes the memory of an array whatever its strides.
            tensors[f"output/{index}"] = np.ascontiguousarray(run(weights, config, image * gain))
        save_file(tensors, folder / f"{name}.safetensors", metadata={"config": json.dumps(config)})


if __name__ == "__main__":
    main()
