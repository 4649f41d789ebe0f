"""Every test of an operator runs on both of its forms."""

from __future__ import annotations

import pytest

from fxptq.kernels.build import backend
from tests.kernels.helpers import Operators


@pytest.fixture(params=["native", "plain"])
def operators(request: pytest.FixtureRequest) -> Operators:
    """Compiled kernels, where they can be built, and plain torch."""
    if request.param == "native" and not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")
    return Operators(request.param == "native")
