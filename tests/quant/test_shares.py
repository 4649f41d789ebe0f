"""The scheme of attention weights: codes relative to the largest of a row, values as shares of the sum of codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxptq.errors import CalibrationError
from fxptq.quant.distribution import Distribution
from fxptq.quant.schemes.shares import Shares
from fxptq.quant.search import dobi2d
from fxptq.refusal import Refusal


def on(bits: int = 3, ceiling: float = 0.75) -> Shares:
    q = Shares(bits)
    q.set_bounds(0.0, ceiling)
    q.mode = "on"
    return q


def rows(seed: int = 0) -> torch.Tensor:
    return torch.softmax(2 * torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed)), -1)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), ceiling=st.floats(0.3, 1.0), seed=st.integers(0, 99))
def test_codes_and_values_follow_their_definition(bits: int, ceiling: float, seed: int) -> None:
    q, p, n = on(bits, ceiling), rows(seed), 2**bits - 1
    steps = p.double() * n / (q.upper.double() * p.double().amax(-1, keepdim=True))
    codes = q.encode(p)
    off_tie = ((steps - steps.floor()) - 0.5).abs() > 1e-4
    assert torch.equal(codes[off_tie].double(), steps.clamp(0, n).round()[off_tie])
    assert int(codes.max()) == n
    torch.testing.assert_close(q(p), codes / codes.sum(-1, keepdim=True, dtype=torch.float32))
    assert torch.equal(q.decode(codes), q(p))
    torch.testing.assert_close(q(p).sum(-1), torch.ones(3, 5))


def test_rows_without_positive_values_are_zero_and_a_nan_stays_visible() -> None:
    p = torch.tensor([[0.0, 0.0], [-1.0, -2.0], [0.5, -0.5], [float("nan"), 1.0]])
    values = on()(p)
    assert values[:3].tolist() == [[0, 0], [0, 0], [1, 0]]
    assert bool(values[3].isnan().any())


def test_a_search_moves_the_ceiling_and_keeps_the_lower_end_at_zero() -> None:
    q, p = Shares(3), rows()
    found = dobi2d(Distribution.of(q.normalize(p)), q, 50)
    q.set_bounds(found.lower, found.upper)
    assert q.lower.item() == 0.0
    assert 0.3 < q.upper.item() <= 1.0
    q.mode = "on"
    assert float((q(p) - p).square().mean()) <= float((on(3, 0.3)(p) - p).square().mean())


def test_stored_tensors_give_it_back_bit_for_bit_after_training() -> None:
    q, p = on(), rows()
    p.requires_grad_(True)
    (q(p) * torch.randn(3, 5, 16)).sum().backward()
    assert q.log_ratio.grad is not None
    assert bool(q.log_ratio.grad.any())
    assert bool(p.grad.any())
    with torch.no_grad():
        q.log_ratio.fill_(0.4)
    expected = q(p).detach()
    q.absorb()
    assert torch.equal(q(p), expected)
    other = Shares(3)
    other.restore(q.stored())
    other.mode = "on"
    assert torch.equal(other(p), expected)
    assert q.is_sound()


@pytest.mark.parametrize("ceiling", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_ceiling_is_refused(ceiling: float) -> None:
    with pytest.raises(CalibrationError, match="above 0"):
        Shares(3).restore({"ceiling": torch.tensor([ceiling])})


def test_grids_alone_are_refused_and_a_coding_says_everything() -> None:
    q = on()
    grids, coding = q.grids(), q.coding()
    assert isinstance(grids, Refusal)
    assert "shares of their row's sum" in grids.reason
    assert (coding.shares, coding.is_plain) == (True, False)
    assert coding.grid.levels * coding.grid.scale == pytest.approx(float(q.upper))
