"""examples/quickstart.ipynb: its cells run in order, as in Jupyter, and show what the text says."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"


def cells() -> list[dict[str, Any]]:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    found: list[dict[str, Any]] = book["cells"]
    return found


def execute(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell; the value of its last line if that is an expression, as Jupyter shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)  # noqa: S102  # our own text
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)  # noqa: S307  # likewise


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    with contextlib.redirect_stdout(printed):
        values = [execute(source, names) for source in sources]
    shown = [value for value in values if value is not None]
    assert shown[0]._repr_html_().count("<tr>") == 1 + len(names["q"].sites)
    assert "8 inputs given as tensors" in shown[1] or "8 inputs of a data loader" in shown[1]
    assert shown[2][1:] == ((120, 180, 3), "uint8")
    assert repr(shown[3]).startswith("IntegerModel(default, bicubic x2: ")
    text = printed.getvalue()
    assert "QuantizedModel(default, W4A4, bicubic x2: " in text
    assert float(text.partition(" dB between float and W4A4")[0].split()[-1]) > 25
    assert int(text.partition("by at most ")[2].split()[0]) <= 1
    assert (tmp_path / "upscaler_w4a4.safetensors").exists()


def test_the_notebook_is_stored_without_outputs() -> None:
    for cell in cells():
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_list_of_examples_names_it() -> None:
    assert "(quickstart.ipynb)" in (NOTEBOOK.parent / "README.md").read_text(encoding="utf-8")
