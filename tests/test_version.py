"""The version stands in fxptq/_version.py alone; whatever else says it reads it there."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

import fxptq
from fxptq.checkpoint.file import read
from tests.tiny import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "fxptq" / "_version.py"


def test_the_installed_package_and_the_source_agree() -> None:
    assert importlib.metadata.version("fxptq") == fxptq.__version__


def test_a_checkpoint_says_which_version_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(checkpoint())
    assert read(path).meta.created_by == f"fxptq {fxptq.__version__}"


def test_the_file_of_the_version_imports_nothing() -> None:
    statements = ast.parse(SOURCE.read_text()).body[1:]
    assert [type(statement) for statement in statements] == [ast.Assign]


def test_building_reads_that_file_and_loads_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    expand = pytest.importorskip("setuptools.config.expand", reason="needs setuptools, which builds the package")
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in configuration["project"]
    for name in [name for name in sys.modules if name.split(".")[0] in {"fxptq", "torch"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    attribute = configuration["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert expand.read_attr(attribute, root_dir=ROOT) == fxptq.__version__


def test_nothing_else_asks_the_installer_for_the_version() -> None:
    """A plain source tree has no installed metadata; its commands work all the same."""
    asking = [
        str(path.relative_to(ROOT))
        for folder in ("fxptq", "models", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if {"importlib.metadata:version", "importlib.metadata:metadata"} & _imported(path)
    ]
    assert asking == []


def _imported(path: Path) -> set[str]:
    """`module:name` of every name that a file imports from a module."""
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {f"{statement.module}:{alias.name}" for statement in statements for alias in statement.names}
