"""Folders of pictures: what a walk meets, and that samples depend on names and the seed alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxptq.errors import InputError
from fxptq.io import folders
from fxptq.io.folders import check_pictures, list_pictures, sample_digest, sample_pictures, walk_pictures


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def below(folder: Path, files: object) -> list[str]:
    assert isinstance(files, Iterator | tuple)
    return [path.relative_to(folder).as_posix() for path in files]


def test_a_walk_meets_pictures_of_every_depth_and_nothing_hidden(tmp_path: Path) -> None:
    tree(tmp_path, "b.png", "a/b/c/d.JPG", "a/e.tiff", ".hidden/f.png", "a/._g.png", "notes.txt", "h.png/i.webp")
    assert sorted(below(tmp_path, walk_pictures(tmp_path))) == ["a/b/c/d.JPG", "a/e.tiff", "b.png", "h.png/i.webp"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_and_circles_left(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "a.png")
    tree(tmp_path / "data", "sub/b.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nothing")
    assert sorted(below(tmp_path / "data", walk_pictures(tmp_path / "data"))) == ["linked/a.png", "sub/b.png"]


def test_a_check_looks_no_further_than_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, *(f"{i}.png" for i in range(100)))
    seen = Counter[str]()
    plain = os.scandir

    class Watched:
        def __init__(self, folder: Path) -> None:
            self.entries = plain(folder)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            for entry in self.entries:
                seen[entry.name] += 1
                yield entry

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    monkeypatch.setattr(folders.os, "scandir", Watched)
    check_pictures(tmp_path)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("name", "words"), [("empty", "holds no pictures"), ("no", "no such folder"), ("f", "is a file")]
)
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str, words: str) -> None:
    tree(tmp_path, "f", "empty/deep/notes.txt")
    for look in (check_pictures, lambda folder: sample_pictures(folder, 3, 0)):
        with pytest.raises(InputError, match=words):
            look(tmp_path / name)


def test_a_sample_depends_on_names_and_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i % 7}/{i}.png" for i in range(60)]
    one, other = tree(tmp_path / "one", *names), tree(tmp_path / "another", *reversed(names))
    first, again = sample_pictures(one, 20, 5), sample_pictures(other, 20, 5)
    assert below(one, first.files) == below(other, again.files)
    assert first.total == again.total == 60
    walk = folders.walk_pictures
    monkeypatch.setattr(folders, "walk_pictures", lambda folder: iter(sorted(walk(folder), reverse=True)))
    assert sample_pictures(one, 20, 5) == first
    assert below(one, sample_pictures(one, 20, 6).files) != below(one, first.files)


def test_a_smaller_sample_begins_a_larger_one(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{i}.png" for i in range(30)))
    large = sample_pictures(tmp_path, 100, 1)
    assert len(large.files) == len(set(large.files)) == 30
    assert sample_pictures(tmp_path, 11, 1).files == large.files[:11]
    (tmp_path / large.files[3].name).unlink()
    assert sample_pictures(tmp_path, 10, 1).files == (*large.files[:3], *large.files[4:11])


def test_every_file_is_as_likely(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{'deep/' * (i % 3)}{i}.png" for i in range(10)))
    drawn = Counter(path.name for seed in range(100) for path in sample_pictures(tmp_path, 3, seed).files)
    # Binomial with mean 30 and standard deviation 4.6: five of these are 23.
    assert all(abs(count - 30) < 23 for count in drawn.values())
    assert len(drawn) == 10


def test_the_digest_is_the_one_that_sha256sum_leads_to(tmp_path: Path) -> None:
    tree(tmp_path, "b.png", "a/c d.png")
    files = [tmp_path / "b.png", tmp_path / "a" / "c d.png"]
    lines = "".join(
        f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("b.png", "a/c d.png")
    ).encode()
    assert sample_digest(files, tmp_path) == hashlib.sha256(lines).hexdigest()
    tool = shutil.which("sha256sum")
    if tool is not None:
        printed = subprocess.run(  # noqa: S603  # two files of the test
            [tool, "b.png", "a/c d.png"], cwd=tmp_path, capture_output=True, check=True
        )
        assert printed.stdout == lines
    (tmp_path / "b.png").write_text("changed")
    assert sample_digest(files, tmp_path) != hashlib.sha256(lines).hexdigest()
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        sample_digest([tmp_path / "gone.png"], tmp_path)


def test_a_folder_below_is_passed_over_whatever_leads_to_it(tmp_path: Path) -> None:
    source = tree(tmp_path, "in/b.png", "in/a/c.png", "in/out/d.png", "elsewhere/e.png") / "in"
    (source / "link").symlink_to(source / "out")
    (source / "more").symlink_to(tmp_path / "elsewhere")
    found = list_pictures(source, besides=source / "out")
    assert below(source, tuple(found)) == ["a/c.png", "b.png", "more/e.png"]
    assert len(list_pictures(source, besides=source)) == 5
    assert len(list_pictures(source, besides=source / "nowhere")) == 5
    (source / "out" / "d.png").unlink()
    with pytest.raises(InputError, match="holds no pictures"):
        list_pictures(source / "out")
