"""The kernels for CUDA: in Triton's interpreter with TRITON_INTERPRET=1, which needs no GPU, and else on a GPU.

Triton decides between the two when it is imported, so that a process does one or the other. `make test` runs the
interpreter in a process of its own (tests/kernels/test_cuda.py); without it these tests are marked `cuda`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.cuda.helpers import INTERPRETED, Kernels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a GPU."""
    here = Path(__file__).parent
    for item in items:
        if not INTERPRETED and here in item.path.parents:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture
def operators() -> Kernels:
    """The operators as Triton kernels, for tensors on the CPU."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device; TRITON_INTERPRET=1 runs this in Triton's interpreter")
    return Kernels()
