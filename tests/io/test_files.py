"""Text files are written whole or not at all, and what cannot be written is found before."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import pytest

from fxptq.errors import InputError
from fxptq.io.files import check_writable, write_json, write_text
from fxptq.io.locks import exclusive, lock


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


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to("real/r.json")
    check_writable(tmp_path / "link.json")
    for number in (1, 2):  # through a link to nothing, then to a file
        write_json(tmp_path / "link.json", {"n": number})
        assert (tmp_path / "link.json").is_symlink()
        assert json.loads((tmp_path / "real" / "r.json").read_text()) == {"n": number}


def test_a_descriptor_is_written_to_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w+b") as stream:
        stream.write(b"before\n")
        stream.flush()
        for name in (f"/dev/fd/{stream.fileno()}", f"/proc/self/fd/{stream.fileno()}"):
            check_writable(Path(name))
            write_text(Path(name), "words\n")
    assert (tmp_path / "out.txt").read_text() == "before\nwords\nwords\n"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_writable(tmp_path / "pipe")
    write_text(tmp_path / "pipe", "words")
    assert os.read(reader, 100) == b"words"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    check_writable(path)
    write_json(path, {})
    assert path.read_text() == "{}\n"
    with pytest.raises(InputError, match="File name too long"):
        check_writable(tmp_path / ("n" * 256))


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / ".fxptq-dead.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"mine")
    alive = tmp_path / ".fxptq-alive.part"
    with alive.open("wb") as stream:
        lock(stream.fileno())
        check_writable(tmp_path / "r.json")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".fxptq-alive.part", "mine.part"]
    check_writable(tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.part"]


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.touch(mode=0o600)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600


def test_odd_characters_of_file_names_are_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "a\udc80b")
    assert (tmp_path / "page.html").read_text() == "a\\udc80b"


def test_a_place_is_worked_on_by_one_at_a_time(tmp_path: Path) -> None:
    path, order = tmp_path / "file", []

    def second() -> None:
        with exclusive(path):
            order.append("second")

    other = threading.Thread(target=second)
    with exclusive(path):
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []
