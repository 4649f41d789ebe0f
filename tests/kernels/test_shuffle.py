"""Pixel shuffles that convolutions carry out while they write, whether places of a pixel have whole groups or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxptq.kernels import panels
from tests.kernels.helpers import Operators, codes, epilogue


def weights(columns: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-14, 15, (columns, channels, 3, 3), generator=torch.Generator().manual_seed(seed)).to(
        torch.int8
    )


def run(operators: Operators, kind: str, a: torch.Tensor, w: torch.Tensor, shuffle: int, coded: bool) -> torch.Tensor:
    columns = w.shape[0]
    packed = {"conv2d": panels.pack_conv_weight, "narrow_conv2d": panels.pack_narrow_conv_weight}
    if kind == "conv3x3":
        arguments, place = (panels.pack_taps(w),), {"largest": 15, "narrow": True}
    else:
        arguments, place = (packed[kind](w),), {"kernel_size": (3, 3)}
        place |= {"stride": (1, 1)} if kind == "conv2d" else {}
    scale = torch.full((columns,), 0.01)
    bias = torch.linspace(0, 9, columns)
    levels = panels.pad_columns(torch.full((columns,), 15.0)) if coded else None
    written = epilogue(levels=levels) | {"scale": panels.pad_columns(scale), "bias": panels.pad_columns(bias)}
    operator = getattr(operators, kind)
    return operator(a, *arguments, columns=columns, padding=(1, 1), taps=None, shuffle=shuffle, **place, **written)


@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
@pytest.mark.parametrize(
    ("kind", "columns", "factor"),
    [
        ("conv2d", 256, 2),
        ("conv2d", 512, 2),
        ("conv2d", 48, 2),
        ("conv2d", 576, 3),
        ("conv3x3", 256, 2),
        ("conv3x3", 72, 3),
        ("narrow_conv2d", 4, 2),
    ],
)
def test_shuffled_columns(operators: Operators, kind: str, columns: int, factor: int, coded: bool) -> None:
    a, w = codes((2, 20, 37, 11), 4, seed=1), weights(columns, 20)
    plain = run(operators, kind, a, w, 1, coded)
    found = run(operators, kind, a, w, factor, coded)
    back = torch.argsort(panels.places_first(columns, factor))
    assert torch.equal(found, F.pixel_shuffle(plain[:, back].float(), factor).to(plain.dtype))
    assert found.is_contiguous(memory_format=torch.channels_last)
