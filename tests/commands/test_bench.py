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
    assert all(row["ms"] >= row["fastest_ms"] > 0 for row in result["rows"])
    assert all(row["peak_mb"] > row["working_mb"] >= 0 for row in result["rows"])
    assert "fxptq-int" in ran.out


def test_chosen_ways_and_threads(folder: Path) -> None:
    ways = ("--only", "eager-fp32", "--threads", "1")
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny", *ways, "--json", "b.json")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("b.json").read_text())
    assert (result["threads"], [row["name"] for row in result["rows"]]) == (1, ["eager-fp32"])
    assert result["kernels"]


def test_an_unknown_way_is_named(folder: Path) -> None:
    ran = run("bench", "tiny.safetensors", "--model", "mod:tiny", "--only", "magic")
    assert ran.status == 2
    assert "--only magic: expected some of eager-fp32" in ran.err


def test_a_way_that_fails_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> object:
        raise ValueError("no such instruction")

    monkeypatch.setattr("fxptq.bench.measure.ways", lambda: {"peer": broken})
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny")
    assert ran.status == 0
    assert "peer: ValueError: no such instruction" in ran.out
