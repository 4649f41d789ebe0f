"""`fxptq bench`: every way to run a network has a figure, or says why it has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import run, write_checkpoint, write_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: tiny.toml, tiny.safetensors and mod.py."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    write_checkpoint(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", ["64", "0x64", "64x64x3", "axb"])
def test_a_malformed_size_is_named(folder: Path, size: str) -> None:
    ran = run("bench", "tiny.safetensors", "--size", size, "--model", "mod:tiny")
    assert ran.status == 2
    assert "expected HEIGHTxWIDTH" in ran.err


@pytest.mark.slow
def test_every_way_has_a_row(folder: Path) -> None:
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny", "--json", "b.json")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("b.json").read_text())
    assert result["size"] == "16x16"
    assert result["threads"] >= 1
    names = [row["name"] for row in result["rows"]]
    assert {"eager-fp32", "fxptq-int"} <= set(names)
    assert all(row["ms"] > 0 and row["peak_mb"] > 0 for row in result["rows"])
    assert "fxptq-int" in ran.out
