"""What a command may write where: never over a file that it reads, over another output, or over somebody else's file.

Promises: all of it is found out before the work. A file that is there is replaced if it is of the kind that fxptq
writes in its place, or empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from fxptq.errors import InputError
from fxptq.io.files import check_writable

_HEAD = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of file that fxptq writes: what people call it, and whether the first bytes of a file are of it."""

    name: str
    begins: Callable[[bytes], bool]


CHECKPOINT = Kind("a checkpoint of fxptq", lambda head: head[8:].startswith(b'{"__metadata__":{"fxptq":'))
JSON = Kind("a JSON object", lambda head: head.lstrip().startswith(b"{"))
PAGE = Kind("a report of fxptq", lambda head: head.startswith(b"<!doctype html><html lang=") and b"fxptq" in head)
GRAPHML = Kind("GraphML", lambda head: b"<graphml" in head)
ONNX = Kind("an ONNX file of fxptq", lambda head: head[:1] == b"\x08" and b"\x12\x05fxptq" in head[:16])
TORCH_EXPORT = Kind("a file of torch.export", lambda head: head.startswith(b"PK") and b"archive" in head)


@dataclass(frozen=True)
class Output:
    """A file that a command is going to write: the option that names it, where, and of which kind."""

    option: str
    path: Path
    kind: Kind


def check_outputs(outputs: Sequence[Output], inputs: Mapping[str, Path | str | None]) -> None:
    """Finds out before the work whether files may be written.

    Args:
        outputs: what will be written.
        inputs: what is read, by the option that names it; what is no file (a recipe's name) is passed over.

    Raises:
        InputError: one cannot be written, or would destroy something.
    """
    for output in outputs:
        check_writable(output.path)
        for option, read in inputs.items():
            if read is not None and any(_same(output.path, path) for path in _files(read)):
                raise InputError(f"{output.option} {output.path}: would overwrite the file that {option} names")
    for one, other in combinations(outputs, 2):
        if _same(one.path, other.path):
            raise InputError(f"{other.option} {other.path}: is the file that {one.option} writes; give another name")
    for output in outputs:
        if not _may_replace(output):
            raise InputError(
                f"{output.option} {output.path}: exists and is not {output.kind.name}; give another name, or remove it"
            )


def _files(read: Path | str) -> list[Path]:
    """The files that a value may stand for: a path, or the source of package.module:factory."""
    module = str(read).partition(":")[0].replace(".", os.sep)
    return [Path(read), Path(f"{module}.py"), Path(module) / "__init__.py"]


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist yet
        return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))


def _may_replace(output: Output) -> bool:
    try:
        if not output.path.is_file():  # nothing, or a device or a pipe, which is written to
            return True
        with output.path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise InputError(f"{output.path}: cannot be read: {error.strerror or error}") from None
    return not head or output.kind.begins(head)
