"""The order of the rooms: each imports only from rooms above it, as the two pages that draw the map say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    "_version",
    "lazy",
    "errors",
    "bits",
    "refusal",
    "shell",
    "stages",
    "progress",
    "registry",
    "memory",
    "ranks",
    "sizes",
    "formats",
    "quant",
    "graph",
    "io",
    "models",
    "checkpoint",
    "data",
    "evaluate",
    "passes",
    "kernels",
    "export",
    "recipe",
    "probe",
    "facts",
    "origin",
    "budget",
    "resume",
    "planning",
    "calibration",
    "quantized",
    "engine",
    "api",
    "__init__",
    "commands",
    "training",
    "bench",
    "report",
    "cli",
    "__main__",
)
"""Folders and modules of fxptq/ (`models` and `recipes` stand beside it), each above all that may import it."""

DATA = frozenset({"recipes"})
"""Rooms without code that imports anything."""


def room_of(module: str) -> str:
    """`fxptq.graph.sites` -> `graph`, `fxptq` -> `__init__`."""
    _, _, inside = module.partition(".")
    return inside.partition(".")[0] or "__init__"


def sources() -> Iterator[tuple[str, str]]:
    """Every module of the package as it is installed, with its text."""
    for folder, package in (("fxptq", "fxptq"), ("models", "fxptq.models"), ("recipes", "fxptq.recipes")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *inside)), path.read_text(encoding="utf-8")


def imported(module: str, text: str) -> Iterator[tuple[int, str]]:
    """The modules of fxptq that a text imports, anywhere in it, with their lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from .x import y` counts its dots from the module's own package.
            base = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from fxptq import graph` imports a room; `from fxptq import Bits` the public face.
            names = [f"{source}.{alias.name}" for alias in node.names] if source == "fxptq" else [source]
        else:
            continue
        for name in names:
            if name == "fxptq" or name.startswith("fxptq."):
                known = room_of(name) in {*ROOMS, *DATA}
                yield node.lineno, name if known or name.count(".") != 1 else "fxptq"


def violations(module: str, text: str) -> list[str]:
    """Imports of a module from rooms that do not stand above its own."""
    own = room_of(module)
    above = {*ROOMS[: ROOMS.index(own)], own, *DATA}
    return [
        f"{module}, line {line}: imports {name}, and {own} stands above {room_of(name)}"
        for line, name in imported(module, text)
        if room_of(name) not in above
    ]


def test_every_room_has_its_place_in_the_order() -> None:
    present = {room_of(module) for module, _ in sources()}
    assert present - DATA == set(ROOMS), "write a new room into ROOMS, below all rooms that it imports"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    found = [line for module, text in sources() if room_of(module) == room for line in violations(module, text)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("fxptq.quant.grid", "from fxptq.graph.sites import Site", True),
        ("fxptq.quant.grid", "import fxptq.graph.sites", True),
        ("fxptq.quant.grid", "from fxptq import api", True),
        ("fxptq.quant.grid", "from fxptq import Bits", True),
        ("fxptq.quant.grid", "import fxptq", True),
        ("fxptq.quant.grid", "from ..graph import sites", True),
        ("fxptq.quant.grid", "def late():\n    from fxptq.kernels.lower import lower", True),
        ("fxptq.commands.quantize", "from fxptq import Bits", False),
        ("fxptq.quant.grid", "from .quantizer import Quantizer", False),
        ("fxptq.quant.grid", "from fxptq.errors import InputError\nimport torch", False),
        ("fxptq.graph.sites", "from fxptq.quant import grid", False),
    ],
)
def test_an_import_downwards_is_seen(module: str, text: str, wrong: bool) -> None:
    assert bool(violations(module, text)) is wrong


def drawn(page: str) -> list[str]:
    """The rooms in the first column of a page's table of rooms, in order."""
    table = (ROOT / page).read_text(encoding="utf-8").partition("| room |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [Path(name).stem for cell in cells for name in re.findall(r"`([\w/.]+)`", cell)]


def test_the_design_draws_rooms_in_this_order() -> None:
    rooms = drawn("docs/design.md")
    assert len(rooms) > 10
    assert rooms == sorted(rooms, key=ROOMS.index)


def test_the_guide_for_contributors_draws_all_rooms_in_this_order() -> None:
    assert drawn("CONTRIBUTING.md") == list(ROOMS)
