"""`fxptq inspect`: the sites of a recipe or a checkpoint, as a table, as JSON, as GraphML."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest

from tests.tiny import run, write_checkpoint, write_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: tiny.toml, tiny.safetensors and mod.py."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    write_checkpoint(tmp_path)
    return tmp_path


def test_recipe(folder: Path) -> None:
    ran = run("inspect", "tiny.toml", "--w", 3, "--a", 2, "--json", "r.json", "--graphml", "new/g.graphml")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("r.json").read_text())
    assert set(result) == {"sites", "float_sites"}
    assert len(result["sites"]) == 29
    by_name = {site["name"]: site for site in result["sites"]}
    for name, site in by_name.items():
        assert {"name", "kind", "role", "macs", "bits_w", "bits_a"} <= set(site)
        assert f" {name} " in ran.out  # whole, on one line
    assert (by_name["conv_first"]["bits_w"], by_name["conv_first"]["bits_a"]) == (8, 8)
    assert (by_name["layers.1.conv"]["bits_w"], by_name["layers.1.conv"]["bits_a"]) == (8, 8)
    fc2 = by_name["layers.0.residual_group.blocks.0.mlp.fc2"]
    assert fc2 | {"kind": "linear", "role": "one_sided", "macs": 16 * 16 * 24 * 12, "bits_w": 3, "bits_a": 2} == fc2

    graph = nx.read_graphml("new/g.graphml")
    drawn = {data["site"]: data for _, data in graph.nodes(data=True) if "site" in data}
    assert set(drawn) == set(by_name)
    assert drawn["layers.0.residual_group.blocks.0.mlp.fc2"]["bits_w"] == 3
    assert nx.is_directed_acyclic_graph(graph)
    assert [file.name for file in Path("new").iterdir()] == ["g.graphml"]


def test_checkpoint_has_the_bits_it_was_made_with(folder: Path) -> None:
    ran = run("inspect", "tiny.safetensors", "--w", 2, "--model", "mod:tiny", "--json", "r.json")
    assert (ran.status, ran.err) == (0, "")
    found = {site["name"]: site["bits_w"] for site in json.loads(Path("r.json").read_text())["sites"]}
    assert found["layers.0.residual_group.blocks.0.mlp.fc2"] == 4
    assert found["conv_first"] == 8


def test_network_of_the_users_own(folder: Path) -> None:
    ran = run("inspect", "--model", "mod:tiny", "--site", "*.qkv=W2A3")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count(" 2/3 ") == 4


def test_nothing_named() -> None:
    ran = run("inspect")
    assert ran.status == 2
    assert ran.line == "name what to inspect: a recipe, a checkpoint, or --model package.module:factory"


def test_bundled_recipe() -> None:
    ran = run("inspect", "edsr_x2")
    assert (ran.status, ran.err) == (0, "")
    assert " body.15.body.2 " in ran.out
    assert "a shift or mix of colours" in ran.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["edsr_x5"], "no recipe 'edsr_x5'; did you mean 'edsr_x"),
        (["default"], "recipe default goes with any network and names none; give one (--model)"),
        (["no.toml"], "cannot read the recipe no.toml: No such file or directory"),
        (["no.safetensors"], "no.safetensors: cannot be read: No such file or directory"),
        (["tiny.toml", "--w", "9"], "bits w=9 is out of range"),
        (["tiny.toml", "--graphml", "mod.py/g"], "mod.py/g: cannot be written"),
        (["tiny.toml", "--graphml", "."], ".: is a folder"),
        (["tiny.toml", "--json", "."], ".: is a folder"),
    ],
    ids=" ".join,
)
def test_unfit_subject(args: list[str], message: str, folder: Path) -> None:
    ran = run("inspect", *args)
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(message)


def test_tensors_of_a_checkpoint_need_no_network(folder: Path) -> None:
    Path("mod.py").unlink()
    ran = run("inspect", "tiny.safetensors", "--tensors", "--json", "t.json")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("t.json").read_text())
    rows = {row["name"]: row for row in result["tensors"]}
    assert all(f" {name} " in ran.out for name in rows)
    fc2 = rows["model.layers.0.residual_group.blocks.0.mlp.fc2.weight"]
    assert fc2 | {"holds": "codes", "shape": [12, 24], "bits": 4, "bytes": 12 * 24 // 2} == fc2
    assert 0 < fc2["scale"][0] < fc2["scale"][1]
    assert (
        rows["norm.weight"] | {"holds": "float", "dtype": "float16", "bytes": 24, "scale": None} == rows["norm.weight"]
    )
    # Bounds that half precision holds lie in the part `floats` of the file.
    for part, holds, dtype in (("codes", "codes", "uint8"), ("bounds", "bounds", "float32")):
        listed = [row["bytes"] for row in rows.values() if (row["holds"], row["dtype"]) == (holds, dtype)]
        assert result["bytes"][part] == sum(listed) > 0
    short = rows["layers.0.residual_group.blocks.0.mlp.fc2.weight"]
    assert short | {"holds": "bounds", "shape": [12], "bits": 4, "dtype": "float16", "bytes": 48} == short
    assert short["scale"] == fc2["scale"]
    assert result["bytes"]["file"] == Path("tiny.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--tensors: name a checkpoint, as in fxptq inspect small.safetensors --tensors"),
        (["tiny.toml"], "--tensors: name a checkpoint"),
        (["edsr_x2"], "edsr_x2: cannot be read: No such file or directory"),
        (["tiny_weights.safetensors"], "tiny_weights.safetensors: a safetensors file, but no fxptq checkpoint"),
        (["tiny.safetensors", "--graphml", "g.graphml"], "--tensors reads the file alone and makes no graph"),
        (
            ["tiny.safetensors", "--json", "tiny.safetensors"],
            "--json tiny.safetensors: would overwrite the file that CKPT",
        ),
    ],
    ids=" ".join,
)
def test_tensors_of_something_else(args: list[str], message: str, folder: Path) -> None:
    ran = run("inspect", *args, "--tensors")
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(message)
