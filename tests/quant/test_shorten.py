"""Bounds of several ranges are rounded to half precision, and codes stay what they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.uniform import Uniform

BITS = st.integers(2, 8)


def ranged(bits: int, lower: torch.Tensor, width: torch.Tensor, kind: type[Uniform] = Uniform) -> Uniform:
    quantizer = kind(bits, len(lower), 0)
    quantizer.set_bounds(lower, lower + width)
    quantizer.mode = "on"
    return quantizer


@given(bits=BITS, seed=st.integers(0, 999), affine=st.booleans())
def test_bounds_take_two_bytes_and_weights_on_the_grid_keep_their_codes(bits: int, seed: int, affine: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = torch.rand(5, generator=generator) * 3 + 0.01
    quantizer = ranged(bits, -width * torch.rand(5, generator=generator), width, Affine if affine else Uniform)
    codes = torch.randint(2**bits, (5, 40), generator=generator, dtype=torch.uint8)
    weight = quantizer.decode(codes)
    quantizer.shorten()
    for bound in quantizer.stored().values():
        assert torch.equal(bound.half().float(), bound)
    assert torch.equal(quantizer.encode(weight), codes)
    step = quantizer.scale[:, None].detach()
    assert bool(((quantizer(weight) - weight).abs() <= step / 4).all())


@pytest.mark.parametrize(
    ("lower", "width"),
    [([-1e5, 0.0], [2e5, 1.0]), ([1000.0, 0.0], [0.25, 1.0]), ([0.0, 0.0], [1e-8, 1.0])],
    ids=["too large", "far from zero", "too small"],
)
def test_bounds_that_half_precision_would_change_stay_as_they_are(lower: list[float], width: list[float]) -> None:
    quantizer = ranged(4, torch.tensor(lower), torch.tensor(width))
    before = [bound.clone() for bound in quantizer.stored().values()]
    quantizer.shorten()
    assert all(map(torch.equal, quantizer.stored().values(), before))


def test_the_one_range_of_a_tensor_stays_exact() -> None:
    quantizer = ranged(4, torch.tensor([0.1]), torch.tensor([0.7]))
    quantizer.shorten()
    assert torch.equal(quantizer.stored()["lower"], torch.tensor([0.1]))
