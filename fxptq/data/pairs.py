"""Pairs of pictures on disk: real inputs of a network, with the clean pictures that it should give back.

A folder of pairs holds `input/` and `target/`, with pictures of the same names in both, also in folders below them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxptq.errors import InputError
from fxptq.io.folders import list_pictures

INPUT, TARGET = "input", "target"


@dataclass(frozen=True)
class PairFiles:
    """A pair on disk: its name within the folders, without suffix, and its two files."""

    name: str
    input: Path
    target: Path


def is_paired(folder: Path) -> bool:
    """Whether a folder holds pairs."""
    return (folder / INPUT).is_dir() and (folder / TARGET).is_dir()


def pairs_in(folder: Path) -> list[PairFiles]:
    """The pairs of a folder, in order of name.

    Raises:
        InputError: a picture has no partner, or two pictures have one name.
    """
    inputs, targets = (_by_name(folder / part) for part in (INPUT, TARGET))
    for names, others, part in ((inputs, targets, TARGET), (targets, inputs, INPUT)):
        for name, file in names.items():
            if name not in others:
                raise InputError(f"{file}: has no partner; expected {folder / part / name}.png, or of another suffix")
    return [PairFiles(name, inputs[name], targets[name]) for name in sorted(inputs)]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in list_pictures(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{folder}: {found[name].name} and {file.name} are both named {name}; rename one")
        found[name] = file
    return found
