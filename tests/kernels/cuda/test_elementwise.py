"""Codes from values, as the operators' other forms are tested."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from fxptq.quant.schemes.uniform import Uniform
from tests.kernels.cuda.helpers import Kernels
from tests.kernels.test_elementwise import finite, test_any_layout, test_extreme_values_are_clipped, test_layer_norm

__all__ = ["test_any_layout", "test_extreme_values_are_clipped", "test_layer_norm"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 8), finite, st.floats(2**-10, 50, width=32))
def test_codes_are_the_simulation_s_even_at_ties(operators: Kernels, bits: int, lower: float, width: float) -> None:
    q = Uniform(bits)
    q.restore({"lower": torch.tensor(lower), "width": torch.tensor(width)})
    found = q.lower.item(), q.scale.item()
    ties = (torch.arange(-1, 2**bits + 1).double() + 0.5) * found[1] + found[0]
    near = ties.float().view(-1, 1).view(torch.int32) + torch.arange(-4, 5, dtype=torch.int32)
    x = near.view(torch.float32).reshape(-1)
    assert torch.equal(operators.quantize(x, lower=found[0], step=found[1], levels=2**bits - 1), q.encode(x))
