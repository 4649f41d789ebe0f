"""Codes from values: the simulation's own codes bit for bit, and LayerNorm with its quantizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxptq.kernels import ops, panels
from fxptq.kernels.build import backend
from fxptq.quant.schemes.uniform import Uniform
from tests.kernels.helpers import Operators, assert_codes, grid

finite = st.floats(-100, 100, width=32)


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 8), finite, st.floats(2**-10, 50, width=32), st.integers(0, 999))
def test_codes_are_the_simulation_s_even_at_ties(bits: int, lower: float, width: float, seed: int) -> None:
    """Random values, and every tie of the grid with the floats around it, where an ulp decides."""
    q = Uniform(bits)
    q.restore({"lower": torch.tensor(lower), "width": torch.tensor(width)})
    found = q.lower.item(), q.scale.item()
    ties = (torch.arange(-1, 2**bits + 1).double() + 0.5) * found[1] + found[0]
    near = ties.float().view(-1, 1).view(torch.int32) + torch.arange(-4, 5, dtype=torch.int32)
    x = torch.cat(
        [near.view(torch.float32).reshape(-1), torch.randn(99, generator=torch.Generator().manual_seed(seed)) * 60]
    )
    expected = q.encode(x)
    for native in (True, False) if backend().native else (False,):
        codes = Operators(native).quantize(x, lower=found[0], step=found[1], levels=2**bits - 1)
        assert torch.equal(codes, expected)


def test_extreme_values_are_clipped(operators: Operators) -> None:
    x = torch.tensor([-torch.inf, -3.4e38, -1e20, 1e20, 3.4e38, torch.inf])
    assert operators.quantize(x, lower=-1.0, step=0.125, levels=255).tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda x: x, id="dense"),
        pytest.param(lambda x: x.permute(2, 0, 1), id="permuted"),
        pytest.param(lambda x: x[:, ::2], id="gaps"),
        pytest.param(lambda x: x[:1].expand(3, -1, -1), id="repeats"),
        pytest.param(lambda x: x[:0], id="empty"),
    ],
)
def test_any_layout(operators: Operators, arrange) -> None:  # type: ignore[no-untyped-def]  # the parameters say it
    x = arrange(torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0)))
    plain = ops.quantize(x, lower=-1.0, step=0.13, levels=15)
    found = operators.quantize(x, lower=-1.0, step=0.13, levels=15)
    assert torch.equal(found, plain)
    assert found.stride() == plain.stride()


@pytest.mark.parametrize("width", [1, 7, 16, 60, 64, 65, 180, 250])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm(operators: Operators, width: int, mean: float) -> None:
    g = torch.Generator().manual_seed(width)
    x = torch.randn(3, 17, width, generator=g) + mean
    weight, bias = torch.randn(width, generator=g), torch.randn(width, generator=g)
    target = grid(4, seed=1)
    scale = panels.pad_columns(weight.double() / target.scale)
    offset = panels.pad_columns((bias.double() - target.offset) / target.scale)
    found = operators.layer_norm_codes(x, scale=scale, offset=offset, eps=1e-5, levels=15)
    exact = (F.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5) - target.offset) / target.scale
    if mean == 0.0:
        assert_codes(found, exact, 15)
    else:  # float32 holds x itself to 6e-5 here
        assert float((found.double() - exact.clamp(0, 15)).abs().max()) < 0.51
