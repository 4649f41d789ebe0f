"""Our networks against outputs of the original arithmetic, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR
from fxptq.models.weights_format import load_state
from safetensors import safe_open
from torch import Tensor, nn

OWN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "golden"
SHARED_NAMES = [
    "edsr_x2",
    "edsr_x3",
    "edsr_x4",
    "swinir_classical_x3",
    "swinir_denoise",
    "swinir_jpeg_w7",
    "swinir_light_x4",
    "swinir_real_x4_3conv",
]


def cases(path: Path) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    model: nn.Module = EDSR(**config) if "n_feats" in config else SwinIR(**config)
    load_state(model, {key.removeprefix("weights/"): t for key, t in tensors.items() if key.startswith("weights/")})
    count = sum(key.startswith("input/") for key in tensors)
    pairs = [(tensors[f"input/{i}"].double(), tensors[f"output/{i}"]) for i in range(count)]
    return model.double().eval(), pairs


def assert_matches(path: Path) -> None:
    model, pairs = cases(path)
    assert pairs
    for image, expected in pairs:
        with torch.inference_mode():
            actual = model(image)
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_original_outputs(shared: Path, name: str) -> None:
    assert_matches(shared / "data" / "golden" / f"{name}.safetensors")
