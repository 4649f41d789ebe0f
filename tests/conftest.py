"""Fixtures shared by every suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


ON_DEMAND = ("fuzz", "faults")
"""Suites that run only where the expression of -m asks for them by name."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = re.sub(r"\bnot \w+", "", config.option.markexpr)
    unasked = [name for name in ON_DEMAND if not re.search(rf"\b{name}\b", asked)]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and golden outputs beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the folder of measuring data beside the checkout (../shared)")
    return SHARED.resolve()
