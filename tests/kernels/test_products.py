"""Products of two activations, and attention as one kernel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.kernels import panels, reference
from fxptq.kernels.build import backend
from fxptq.kernels.destination import Target
from fxptq.kernels.products import logit_terms, output_terms
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from tests.kernels.helpers import KINDS, SUMS, Operators, arguments_of, assert_codes, close, codes, factors, grid


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(1, 90), st.integers(1, 70), st.sampled_from(KINDS),
    st.booleans(), st.integers(2, 8), st.integers(2, 8),
)  # fmt: skip
def test_sums_equal_int64(  # type: ignore[no-untyped-def]  # the strategies say it
    batch, rows, depth, columns, kind, turned, left, right
) -> None:
    a, b = codes((batch, rows, depth), left, kind, 1), codes((batch, depth, columns), right, "extreme", 2)
    if turned:
        b = b.transpose(-1, -2).contiguous().transpose(-1, -2)
    expected = a.long() @ panels.centred(b, right).long()
    for native in (True, False) if backend().native else (False,):
        found = Operators(native).matmul(a, b, bits=right, largest=2**left - 1, **SUMS, row_sums=False)
        assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (7, 8), (8, 3)], ids=str)
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric", "one_sided"])
def test_product_equals_float64(operators: Operators, bits: tuple[int, int], symmetry: str) -> None:
    left, right = grid(bits[0], symmetry, seed=1), grid(bits[1], "asymmetric", seed=2)
    a, b = codes((2, 3, 20, 30), bits[0], seed=3), codes((2, 3, 30, 40), bits[1], seed=4)
    found = operators.matmul(a, b, bits=bits[1], largest=left.levels, **arguments_of(factors(left, right)))
    assert close(found, reference.values(a, left) @ reference.values(b, right))


LOG2E = math.log2(math.e)


def lanes(x: Tensor) -> Tensor:
    """[..., N, M] as the kernel takes it: keys first, queries to a multiple of 16, in powers of two."""
    return F.pad(x.transpose(-1, -2) * LOG2E, (0, -x.shape[-2] % 16)).contiguous()


def attend(
    operators: Operators,
    parts: tuple[Tensor, Tensor, Tensor],
    grids: tuple[Grid | Coding, ...],
    bias: Tensor | None,
    mask: Tensor | None,
    target: Grid | None,
) -> Tensor:
    query, key, value, prob = (one if isinstance(one, Coding) else Coding((one,)) for one in grids)
    heads, columns = parts[2].shape[1], parts[2].shape[3]
    codes_ = None
    if target is not None:
        numbers = (1 / target.scale, target.zero_point, float(target.levels))
        codes_ = Target(*(torch.full((heads * columns,), number, dtype=torch.float64) for number in numbers))
    mix = factors(prob, value)
    return operators.attention(
        *parts,
        bias=None if bias is None else lanes(bias),
        mask=None if mask is None else lanes(mask),
        query_bits=query.grid.bits,
        key_bits=key.grid.bits,
        value_bits=value.grid.bits,
        logit=LOG2E * logit_terms(factors(query, key)),
        prob=[1 / prob.grid.scale, prob.grid.zero_point, prob.grid.levels],
        out=output_terms(mix, codes_, heads),
        levels=0 if target is None else target.levels,
        row_sums=mix.row_sums,
        shares=mix.shares,
    )


CASES = [
    pytest.param(4, 6, 64, 64, 10, 10, 4, id="swinir-light"),
    pytest.param(2, 3, 49, 49, 30, 30, 3, id="window-7"),
    pytest.param(2, 2, 50, 33, 32, 20, 8, id="queries-and-keys-differ"),
    pytest.param(1, 1, 7, 5, 5, 3, 2, id="small"),
    pytest.param(2, 4, 16, 30, 17, 40, 7, id="wide-values"),
    pytest.param(1, 1, 9, 300, 300, 7, 4, id="beyond-16-bits"),
]


@pytest.mark.parametrize(("windows", "heads", "rows", "keys", "depth", "width", "bits"), CASES)
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("coded", [False, True], ids=["values", "codes"])
def test_attention(  # type: ignore[no-untyped-def]  # the parameters say it
    operators: Operators, windows, heads, rows, keys, depth, width, bits, symmetry, masked, coded
) -> None:
    g = torch.Generator().manual_seed(3)
    # As networks make them: heads beside each other in one row.
    a, k, v = (
        codes((windows, count, heads, size), bits, seed=seed).transpose(1, 2)
        for seed, (count, size) in enumerate([(rows, depth), (keys, depth), (keys, width)])
    )
    grids = (grid(bits, symmetry, 1), grid(bits, symmetry, 2), grid(bits, symmetry, 3), grid(bits, "one_sided", 4))
    bias = torch.randn(heads, rows, keys, generator=g) * 0.3
    mask = torch.where(torch.rand(max(windows // 2, 1), rows, keys, generator=g) < 0.3, -100.0, 0.0) if masked else None
    target = grid(bits, "asymmetric", 5) if coded else None
    found = attend(operators, (a, k, v), grids, bias, mask, target)
    q64, k64, v64 = (reference.values(x, grid) for x, grid in zip((a, k, v), grids[:3], strict=True))
    expected, p = reference.attention(q64, k64, v64, bias=bias, mask=mask, prob=grids[3])
    # A softmax value within float32 rounding of a tie may take the code beside it: leave such rows out.
    steps = (p - grids[3].offset) / grids[3].scale
    sure = ((steps - steps.floor() - 0.5).abs() > 1e-4).all(-1, keepdim=True).expand_as(expected)
    assert float(sure.double().mean()) > 0.8
    if target is None:
        assert close(torch.where(sure, found, 0.0), torch.where(sure, expected, 0.0))
    else:
        exact = (expected - target.offset) / target.scale
        assert_codes(found[sure], exact[sure], target.levels)


def test_softmax_of_a_distant_maximum(operators: Operators) -> None:
    """Logits thousands apart, as masks and large scales make them: no overflow, no NaN, all weight on one key."""
    coarse = Grid(8.0, 0.0, 8)
    a, k, v = (codes((1, 1, 16, 8), 8, seed=seed) for seed in range(3))
    prob = Grid(1 / 255, 0.0, 8)
    found = attend(operators, (a, k, v), (coarse, coarse, coarse, prob), None, None, None)
    best = (reference.values(a, coarse) @ reference.values(k, coarse).transpose(-1, -2)).argmax(-1)
    assert close(found, reference.values(v, coarse)[0, 0][best[0, 0]].view(found.shape))


@pytest.mark.parametrize("step", [0.02, 0.5])
def test_probabilities_off_zero(operators: Operators, step: float) -> None:
    """A softmax grid that does not start at zero needs the column sums of v."""
    grids = (grid(4, seed=1), grid(4, seed=2), grid(4, seed=3), Grid(step / 15, 0.01, 4))
    a, k, v = (codes((2, 2, 30, 12), 4, seed=seed) for seed in range(3))
    found = attend(operators, (a, k, v), grids, None, None, None)
    q64, k64, v64 = (reference.values(x, grid) for x, grid in zip((a, k, v), grids[:3], strict=True))
    expected, p = reference.attention(q64, k64, v64, bias=None, mask=None, prob=grids[3])
    steps = (p - grids[3].offset) / grids[3].scale
    sure = ((steps - steps.floor() - 0.5).abs() > 1e-4).all(-1, keepdim=True).expand_as(expected)
    assert close(torch.where(sure, found, 0.0), torch.where(sure, expected, 0.0))
