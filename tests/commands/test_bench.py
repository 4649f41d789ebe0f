"""`fxptq bench`: every way to run a network has a figure, or says why it has none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fxptq.bench import measure
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


@pytest.mark.parametrize("option", ["--ways", "--only"])
def test_chosen_ways_and_threads(folder: Path, option: str) -> None:
    ways = (option, "eager-fp32", "--threads", "1")
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny", *ways, "--json", "b.json")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("b.json").read_text())
    assert (result["threads"], [row["name"] for row in result["rows"]]) == (1, ["eager-fp32"])
    assert result["kernels"]


def test_ways_are_joined_by_commas(folder: Path) -> None:
    ways = ("--ways", "fxptq-int,eager-fp32", "--threads", "1")
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny", *ways, "--json", "b.json")
    assert (ran.status, ran.err) == (0, "")
    rows = json.loads(Path("b.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["eager-fp32", "fxptq-int"]
    assert all(row["ms"] >= row["fastest_ms"] > 0 for row in rows)
    assert all(row["peak_mb"] > row["working_mb"] >= 0 for row in rows)


def test_an_unknown_way_is_named(folder: Path) -> None:
    ran = run("bench", "tiny.safetensors", "--model", "mod:tiny", "--ways", "eager-fp32,magic")
    assert ran.status == 2
    assert "--ways magic: expected some of eager-fp32" in ran.err


def test_a_file_that_is_no_checkpoint_is_refused_before_the_work(folder: Path) -> None:
    ran = run("bench", "tiny.toml", "--model", "mod:tiny")
    assert (ran.status, ran.out) == (2, "")
    assert "tiny.toml" in ran.line


PEERS = {
    "raises": ("raise ValueError('no such instruction')", "openvino-fp32: ValueError: no such instruction"),
    "dies": ("import os; os.kill(os.getpid(), 9)", "openvino-fp32: its process was ended by signal 9"),
    "leaves": ("import os; os._exit(3)", "openvino-fp32: its process ended with status 3"),
}


def test_a_way_that_nobody_named_and_that_is_late_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PREPARATION", 0)
    monkeypatch.setattr(measure, "ways", lambda: dict.fromkeys(("eager-fp32", "fxptq-int", "compile-fp32")))
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny", "--json", "b.json")
    assert ran.status == 0
    assert "compile-fp32: not ready within 0 s; --ways compile-fp32,... waits for it" in ran.out
    rows = json.loads(Path("b.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["eager-fp32", "fxptq-int"]


@pytest.mark.parametrize(("body", "note"), PEERS.values(), ids=PEERS)
def test_a_way_that_fails_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, note: str) -> None:
    peers = folder / "peers"
    (peers / "openvino").mkdir(parents=True)
    (peers / "openvino" / "__init__.py").write_text(f"def convert_model(*_, **__):\n    print('noise')\n    {body}\n")
    monkeypatch.syspath_prepend(peers)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(peers), os.environ.get("PYTHONPATH", "")]))
    ways = ("--ways", "openvino-fp32,eager-fp32", "--threads", "1", "--json", "b.json")
    ran = run("bench", "tiny.safetensors", "--size", "16x16", "--model", "mod:tiny", *ways)
    assert ran.status == 0
    assert note in ran.out
    assert [row["name"] for row in json.loads(Path("b.json").read_text())["rows"]] == ["eager-fp32"]
