"""What a command may write where: not over what it reads, not twice, not over somebody else's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxptq.errors import InputError
from fxptq.io.outputs import CHECKPOINT, GRAPHML, JSON, PAGE, Kind, Output, check_outputs
from tests.tiny import checkpoint


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("way", ["itself", "another spelling", "link", "hard link"])
def test_an_input_is_never_written(way: str, here: Path) -> None:
    (here / "w.json").write_text("{}")
    place = here / "other.json"
    if way == "itself":
        place = here / "w.json"
    elif way == "another spelling":
        (here / "folder").mkdir()
        place = here / "folder" / ".." / "w.json"
    elif way == "link":
        place.symlink_to("w.json")
    else:
        os.link("w.json", place)
    with pytest.raises(InputError, match="would overwrite the file that --weights names"):
        check_outputs([Output("--json", place, JSON)], {"--weights": Path("w.json"), "--recipe": None})


@pytest.mark.parametrize("source", ["net.py", "pack/net.py", "pack/__init__.py"])
def test_the_source_of_a_factory_is_an_input(source: str, here: Path) -> None:
    (here / source).parent.mkdir(exist_ok=True)
    (here / source).write_text("")
    name = source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    with pytest.raises(InputError, match="would overwrite the file that --model names"):
        check_outputs([Output("--graphml", Path(source), GRAPHML)], {"--model": f"{name}:make"})


def test_one_file_is_not_written_twice(here: Path) -> None:
    outputs = [Output("--out", Path("a"), CHECKPOINT), Output("--json", here / "a", JSON)]
    with pytest.raises(InputError, match=r"--json .*a: is the file that --out writes"):
        check_outputs(outputs, {})


OURS = {
    CHECKPOINT: checkpoint,
    JSON: lambda: b'{\n "a": 1\n}\n',
    PAGE: lambda: b'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="fxptq">',
    GRAPHML: lambda: b"<?xml version='1.0' encoding='utf-8'?>\n<graphml>",
}


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_what_is_of_the_kind_or_empty_is_replaced_and_nothing_else(kind: Kind, here: Path) -> None:
    contents = {other: make() for other, make in OURS.items()} | {None: b"import torch\n"}
    for other, content in contents.items():
        Path("there").write_bytes(content)
        if other is kind:
            check_outputs([Output("--x", Path("there"), kind)], {})
        else:
            with pytest.raises(InputError, match=f"there: exists and is not {kind.name}"):
                check_outputs([Output("--x", Path("there"), kind)], {})
        assert Path("there").read_bytes() == content
    Path("there").write_bytes(b"")
    check_outputs([Output("--x", Path("there"), kind), Output("--y", Path("new/file"), kind)], {})
