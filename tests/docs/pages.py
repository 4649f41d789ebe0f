"""The fenced blocks of a page, run in order in one folder, as a reader would.

A block whose first line is `# NAME.SUFFIX` is written to that file. Other Python runs, all in one namespace. Console
blocks hold commands after `$` and what they print, where `...` stands for anything.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.tiny import Ran, run

FENCE = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./]+\.\w+)\n")
DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the word after it, its text, and where it begins."""

    language: str
    note: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The file it is, or nothing."""
        found = FILE.match(self.text)
        return found[1] if found else ""


def blocks(page: str) -> list[Block]:
    """The blocks of a page of docs/, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [Block(f[1], f[2] or "", f[3], text.count("\n", 0, f.start()) + 2) for f in FENCE.finditer(text)]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what it should print."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what the page says; runs of spaces count as one."""
    pieces = [re.escape(" ".join(piece.split())) for piece in expected.split("...")]
    return re.fullmatch(".*".join(pieces), " ".join(printed.split()), re.DOTALL) is not None


def install(folder: Path) -> None:
    """What pip does for a package of pure Python: metadata and entry points beside the package, on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


def run_block(block: Block, names: dict[str, object], page: str) -> None:
    """Writes, executes or runs a block in the working directory."""
    where = f"{page}:{block.line}"
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)
    elif block.language == "python":
        # As many newlines as stand before it, so that a traceback names the page's line.
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)  # noqa: S102  # the text is our own
    else:
        assert block.language == "console", f"{where}: a block of {block.language} that is no file"
        for command, expected in commands(block):
            if command == "pip install .":
                install(Path.cwd())
                continue
            assert command.startswith("fxptq "), f"{where}: {command}"
            check(run(*shlex.split(command)[1:]), expected, fails=block.note == "fails", what=f"{where}: {command}")


def check(ran: Ran, expected: str, *, fails: bool, what: str) -> None:
    """Whether a command ended and printed as the page says."""
    assert (ran.status != 0) == fails, f"{what}\n{ran.err}"
    printed = ran.err if fails else ran.out
    assert matches(expected, printed), f"{what}\nprinted\n{printed}"
