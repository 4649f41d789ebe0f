"""Recipes that are wrong somewhere, as TOML."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import hostile
from tests.tiny import RECIPE

BUNDLED = Path(__file__).parents[2] / "recipes"


@cache
def originals() -> tuple[str, ...]:
    """The text of every bundled recipe."""
    return (RECIPE, *(path.read_text(encoding="utf-8") for path in sorted(BUNDLED.glob("*.toml"))))


def forged(seed: int) -> bytes:
    """The bytes of a recipe's file."""
    rng = np.random.default_rng([seed, 2])
    text = originals()[int(rng.integers(len(originals())))]
    if rng.random() < 0.3:
        return hostile.damaged(rng, text.encode())
    change = hostile.changed if rng.random() < 0.5 else hostile.exchanged
    tree = change(rng, tomllib.loads(text))
    if not isinstance(tree, dict):
        return str(tree).encode("utf-8", "replace")
    return "".join(f"{json.dumps(str(key))} = {_toml(item)}\n" for key, item in tree.items()).encode("utf-8", "replace")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return '"null"' if value is None else json.dumps(value)
