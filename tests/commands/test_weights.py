"""`fxptq weights`: what there is and where a file belongs, whole on a line; nothing is fetched unless asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fxptq import Recipe
from tests.tiny import run


def test_every_path_and_address_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "40")
    ran = run("weights")
    assert (ran.status, ran.err) == (0, "")
    recipes = [recipe for recipe in map(Recipe.load, Recipe.names()) if recipe.weights.url]
    assert len(recipes) >= 8
    lines = ran.out.splitlines()
    for recipe in recipes:
        assert f"  is published at {recipe.weights.url}" in lines
        if not recipe.weights.bundled:
            assert f"  belongs at {tmp_path / 'fxptq' / recipe.weights.file}" in lines
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = Recipe.load("edsr_x2").weights
    path = tmp_path / "fxptq" / weights.file
    path.parent.mkdir()
    path.write_bytes(b"something else")
    row = next(line for line in run("weights").out.splitlines() if " edsr_x2 " in line)
    assert "cached" in row
    assert "bad" in row
    ran = run("quantize", "--recipe", "edsr_x2", "--out", tmp_path / "m.safetensors")
    assert ran.status == 2
    assert hashlib.sha256(b"something else").hexdigest() in ran.line


def test_unknown_recipe_is_not_fetched() -> None:
    ran = run("weights", "--download", "edsr_x9")
    assert (ran.status, ran.out) == (2, "")
    assert "no recipe 'edsr_x9'" in ran.line


def test_recipe_without_a_url() -> None:
    ran = run("weights", "--download", "default")
    assert (ran.status, ran.line) == (2, "the recipe of default names no URL to download its weights from")
