"""Products of activations and attention: what the operators' other forms are tested by, and blocks of keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from fxptq.kernels import panels, reference
from fxptq.kernels.cuda import attention
from fxptq.quant.grid import Grid
from tests.kernels.cuda.helpers import Kernels
from tests.kernels.helpers import KINDS, SUMS, close, codes, grid
from tests.kernels.test_products import (
    attend,
    test_attention,
    test_probabilities_off_zero,
    test_product_equals_float64,
    test_softmax_of_a_distant_maximum,
)

__all__ = [
    "test_attention",
    "test_probabilities_off_zero",
    "test_product_equals_float64",
    "test_softmax_of_a_distant_maximum",
]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sums_equal_int64(operators: Kernels, data: st.DataObject) -> None:
    draw = data.draw
    batch, rows, depth, columns = (draw(st.integers(1, largest)) for largest in (3, 40, 150, 90))
    kind, bits = draw(st.sampled_from(KINDS)), draw(st.sampled_from([2, 4, 7, 8]))
    a, b = codes((batch, rows, depth), 8, kind, 1), codes((batch, depth, columns), bits, "extreme", 2)
    if draw(st.booleans()):
        b = b.transpose(-1, -2).contiguous().transpose(-1, -2)
    if draw(st.booleans()):
        a = a.transpose(-1, -2).contiguous().transpose(-1, -2)
    found = operators.matmul(a, b, bits=bits, **SUMS)
    assert torch.equal(found.long(), a.long() @ panels.centred(b, bits).long())


def test_sums_too_deep_for_32_bits(operators: Kernels) -> None:
    a, b = torch.full((1, 1, 70_000), 255, dtype=torch.uint8), torch.full((1, 70_000, 1), 255, dtype=torch.uint8)
    found = operators.matmul(a, b, bits=8, **SUMS)
    assert found.item() == torch.tensor(70_000 * 255 * 127).float()


@pytest.mark.parametrize("masked", ["", "first block", "last block"])
@pytest.mark.parametrize("bits", [3, 8])
def test_keys_in_blocks(operators: Kernels, monkeypatch: pytest.MonkeyPatch, masked: str, bits: int) -> None:
    """More keys than a block holds: the softmax is that of all, also where a block is masked out altogether."""
    monkeypatch.setattr(attention, "_KEYS", 32)
    grids = (grid(bits, seed=1), grid(bits, seed=2), grid(bits, seed=3), Grid(0.3 / (2**bits - 1), 0.0, bits))
    a, k, v = (codes((2, 2, 75, 12), bits, seed=seed) for seed in range(3))
    bias, mask = torch.randn(2, 75, 75, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 75, 75)
    if masked:
        mask[..., slice(0, 32) if masked == "first block" else slice(64, 75)] = -torch.inf
    found = attend(operators, (a, k, v), grids, bias, mask, None)
    q64, k64, v64 = (reference.values(x, one) for x, one in zip((a, k, v), grids[:3], strict=True))
    expected, p = reference.attention(q64, k64, v64, bias=bias, mask=mask, prob=grids[3])
    steps = (p - grids[3].offset) / grids[3].scale
    sure = ((steps - steps.floor() - 0.5).abs() > 1e-4).all(-1, keepdim=True).expand_as(expected)
    assert float(sure.double().mean()) > 0.8
    assert close(torch.where(sure, found, 0.0), torch.where(sure, expected, 0.0))
