"""Text files are written whole or not at all, and what cannot be written is found before."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from fxptq.errors import InputError
from fxptq.io.files import check_writable, write_json, write_text


def test_text_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    write_text(path, "é\n")
    write_text(path, "è\n")
    assert path.read_bytes() == "è\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_failure_keeps_the_old_file_and_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"page\.html: cannot be written: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": [1.5, math.inf], "b": {"c": (math.nan, "x")}})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, None], "b": {"c": [None, "x"]}}


def test_look_ahead(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file.txt")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(InputError, match="is a folder; expected the name of a file"):
        check_writable(tmp_path)
    (tmp_path / "taken").touch()
    for below in (tmp_path / "taken" / "f", tmp_path / "taken" / "g" / "f"):
        with pytest.raises(InputError, match="is a file and no folder"):
            check_writable(below)
