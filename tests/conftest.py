"""Fixtures shared by every suite."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and golden outputs beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the folder of measuring data beside the checkout (../shared)")
    return SHARED.resolve()
