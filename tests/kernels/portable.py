"""Builds the kernels for another processor, and compares every operator with its plain form. Prints what was built."""

from __future__ import annotations

import sys
from typing import Any

import torch

from fxptq.kernels import ops, panels
from fxptq.kernels.build import library
from tests.kernels.helpers import codes, epilogue


def cases() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of each operator, with sizes that are no multiple of anything."""
    torch.manual_seed(1)

    def layer(columns: int, levels: float | None = 15.0) -> dict[str, Any]:
        written = epilogue(levels=None if levels is None else panels.pad_columns(torch.full((columns,), levels)))
        written |= {"scale": panels.pad_columns(torch.rand(columns) * 1e-3), "activation": 2}
        written |= {"out_scale": panels.pad_columns(torch.full((columns,), 3.0)), "out_offset": written["scale"]}
        return written | {"bias": panels.pad_columns(torch.randn(columns)), "columns": columns}

    rows = codes((37, 30), 8)
    image = codes((2, 19, 13, 9), 4, seed=1)
    weight = torch.randint(-14, 15, (35, 19, 3, 3)).to(torch.int8)
    place = {"padding": (1, 1), "taps": panels.pad_columns(torch.randn(9, 35))}
    window = [codes((3, 2, size, 10), 4, seed=size) for size in (17, 21, 21)]
    grids = {
        "key_bits": 4,
        "value_bits": 4,
        "logit": torch.full((2, 2, 1), 1e-3).double(),
        "prob": [15.0, 0.0, 15.0],
        "levels": 15,
    }
    one = {"scale": panels.pad_columns(torch.rand(60) * 3), "offset": panels.pad_columns(torch.rand(60) * 7)}
    return [
        (
            "linear",
            (rows, panels.pack_weight(2 * torch.randint(-8, 8, (70, 30)).to(torch.int8) + 1)),
            layer(70),
        ),
        ("quantize", (torch.randn(3, 71),), {"lower": -1.0, "step": 0.1, "levels": 15}),
        ("affine_codes", (torch.randn(3, 5, 60),), {name: x[:60] for name, x in one.items()} | {"levels": 15}),
        ("share_codes", (torch.rand(3, 71),), {"scale": 9.0, "levels": 7}),
        ("layer_norm_codes", (torch.randn(37, 60),), one | {"eps": 1e-5, "levels": 15}),
        (
            "linear",
            (rows, panels.pack_weight(torch.randint(-128, 128, (70, 30)).to(torch.int8))),
            layer(70),
        ),
        (
            "conv2d",
            (image, panels.pack_conv_weight(weight)),
            place | layer(35) | {"kernel_size": (3, 3), "stride": (1, 1)},
        ),
        ("conv3x3", (image, panels.pack_taps(weight)), place | layer(35, None) | {"largest": 15, "narrow": True}),
        (
            "narrow_conv2d",
            (image, panels.pack_narrow_conv_weight(weight[:3])),
            layer(3) | {"kernel_size": (3, 3), "padding": (1, 1), "taps": None},
        ),
        (
            "matmul",
            (codes((4, 7, 10), 8), codes((4, 10, 9), 8)),
            {"bits": 8, "left": torch.rand(2, 1, 7).double(), "right": torch.rand(2, 4, 9).double(), "shares": True},
        ),
        ("attention", tuple(window), grids | {"bias": None, "mask": None, "out": 1e-2 * torch.rand(5, 2, 10).double()}),
    ]


def main(target: str) -> None:
    """Compares for one target of the compiler."""
    operators: Any = torch.ops
    operators.load_library(str(library((f"-march={target}",))))
    for name, args, kwargs in cases():
        found = getattr(operators.fxptq, name)(*args, **kwargs)
        expected = ops.PLAIN[name](*args, **dict(kwargs))
        off = (found.double() - expected.double()).abs()
        # A code beside a tie may fall on either side of it.
        near = off <= 1e-5 * float(expected.abs().max()) if found.is_floating_point() else off == 0
        assert float(near.double().mean()) > 0.998, f"{name}: {off.max()}"
    print(operators.fxptq_native.isa(), "equal")


if __name__ == "__main__":
    main(sys.argv[1])
