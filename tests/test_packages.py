"""Everything that the source tree has is in an installation: every package, and every file beside the modules."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"fxptq": "fxptq", "models": "fxptq.models", "recipes": "fxptq.recipes"}
"""The folders of the tree, and the packages they are installed as."""

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def packages() -> Iterator[tuple[str, Path]]:
    """Every folder with an `__init__.py`, by its name as a package."""
    for folder, package in PLACES.items():
        for path in sorted((ROOT / folder).rglob("__init__.py")):
            yield ".".join([package, *path.parent.relative_to(ROOT / folder).parts]), path.parent


def test_every_package_is_installed() -> None:
    assert sorted(SETTINGS["packages"]) == sorted(name for name, _ in packages())


def test_every_file_beside_the_modules_is_installed() -> None:
    taken = {
        path
        for name, folder in packages()
        for pattern in SETTINGS["package-data"].get(name, ())
        for path in folder.glob(pattern)
    }
    built = ROOT / "fxptq/kernels/lib"
    there = {
        path
        for folder in PLACES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and built not in path.parents
    }
    assert there - taken == set()
    assert any(path.suffix == ".cpp" for path in taken)
