"""The three forms of tables."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from fxptq.errors import InputError
from fxptq.report.tables import FORMS, Form, TableConsole, parse_form

LINES = set("│┃─━┏┓┗┛┡┩└┘├┤┼╇")


def printed(form: Form) -> str:
    table = Table(title="Scores", title_justify="left")
    table.add_column("picture")
    table.add_column("dB", justify="right")
    table.add_row("a|b", "30.10")
    table.add_section()
    table.add_row("mean", "9.00")
    out = io.StringIO()
    console = TableConsole(form, file=out, width=200, markup=False, highlight=False)
    console.print(table)
    console.print("done")
    return out.getvalue()


def test_plain_tables_are_aligned_and_not_drawn() -> None:
    lines = [line.rstrip() for line in printed("plain").splitlines()]
    assert lines == ["Scores", " picture      dB", "-" * 17, " a|b       30.10", "-" * 17, " mean       9.00", "done"]


def test_markdown() -> None:
    assert (
        printed("md") == "**Scores**\n\n| picture | dB |\n| --- | --: |\n| a\\|b | 30.10 |\n| mean | 9.00 |\n\ndone\n"
    )


def test_drawn() -> None:
    assert set(printed("table")) & LINES
    assert not set(printed("plain") + printed("md")) & LINES


def test_a_form_by_its_name() -> None:
    assert [parse_form(form) for form in FORMS] == list(FORMS)
    with pytest.raises(InputError, match="--format 'html': expected table, plain or md"):
        parse_form("html")
