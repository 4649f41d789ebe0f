"""State-dict keys and shapes against the authors' published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR

NAMES = [
    "001_classicalSR_DF2K_s64w8_SwinIR-M_x4",
    "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2",
    "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x3",
    "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4",
    "005_colorDN_DFWB_s128w8_SwinIR-M_noise25",
    "006_CAR_DFWB_s126w7_SwinIR-M_jpeg40",
    "edsr_baseline_x2-1bc95232",
    "edsr_baseline_x3-abf2a44e",
    "edsr_baseline_x4-6b446fab",
    "edsr_x2-0edfb8a3",
    "edsr_x3-ea3ef2c6",
    "edsr_x4-4f62e9ef",
]


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_are_the_published_ones(shared: Path, name: str) -> None:
    entry = json.loads((shared / "reference" / "published_weights.json").read_text())[name]
    config = entry["config"]
    with torch.device("meta") if "n_feats" in config and config["n_feats"] > 64 else torch.device("cpu"):
        model: nn.Module = EDSR(**config) if "n_feats" in config else SwinIR(**config)
    assert {key: list(t.shape) for key, t in model.state_dict().items()} == entry["state_dict"]
