"""docs/api.md: the page is what its script writes now, and names all of the public face."""

from __future__ import annotations

import inspect

import griffe
import pytest

import fxptq
from docs import make_api
from tests.docs.pages import DOCS

LONG = "x" * 80
TEXT = (DOCS / "api.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    assert make_api.page() == TEXT, "docstrings have changed: run `make api`"


@pytest.mark.parametrize("name", [name for name in fxptq.__all__ if name != "__version__"])
def test_every_public_name_has_an_entry(name: str) -> None:
    entry = TEXT.partition(f"\n### `{name}`\n")[2].partition("\n### ")[0]
    assert (inspect.getdoc(getattr(fxptq, name)) or "nothing").splitlines()[0] in entry


@pytest.mark.parametrize(
    ("signature", "written"),
    [
        ("(a: int) -> str", "f(a: int) -> str"),
        (
            f"(a: dict[str, tuple[int, int]], *, b: str = '{LONG}', c: int = 1) -> list[int]",
            f"f(\n    a: dict[str, tuple[int, int]],\n    *,\n    b: str = '{LONG}',\n    c: int = 1,\n) -> list[int]",
        ),
    ],
    ids=["short", "long"],
)
def test_a_long_signature_has_a_line_for_each_parameter(signature: str, written: str) -> None:
    with griffe.temporary_visited_module(f"def f{signature}: ...") as module:
        assert make_api._signature(module["f"]) == written


def test_a_section_that_the_page_cannot_show_is_an_error() -> None:
    source = 'def f():\n    """Does it.\n\n    Yields:\n        int: numbers.\n    """\n'
    with (
        griffe.temporary_visited_module(source, docstring_parser="google") as module,
        pytest.raises(ValueError, match="yields"),
    ):
        list(make_api._docstring(module["f"]))
