"""Every test of an operator runs on both of its forms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fxptq.kernels.build import backend
from tests.kernels.helpers import Operators


@pytest.fixture(params=["native", "plain"])
def operators(request: pytest.FixtureRequest) -> Operators:
    """Compiled kernels, where they can be built, and plain torch."""
    if request.param == "native" and not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")
    return Operators(request.param == "native")


@pytest.fixture
def threads() -> Iterator[None]:
    """A test that changes the number of threads, which is as before afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
