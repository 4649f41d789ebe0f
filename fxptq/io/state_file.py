"""State of a run on disk: tensors and JSON in one .safetensors file, under one SHA-256.

Promises: a file is written whole or not at all, tensor by tensor, so that no second copy of the content is in memory;
every byte of content is checked when it is read, and nothing in the file is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxptq.errors import InputError
from fxptq.io.files import write_pieces

_NUMBERS, _DIGEST = "fxptq_state", "sha256"  # entries of the header's own metadata

_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of types in safetensors."""


@dataclass(frozen=True)
class State:
    """A part of a run's state.

    Attributes:
        numbers: all that is no tensor; JSON keeps it exactly.
        tensors: of a type in `_KINDS`, by name.
    """

    numbers: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def write_state(path: Path, state: State) -> None:
    """Writes a state; a file that is there is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    write_pieces(path, _pieces(state))


def read_state(path: Path) -> State | None:
    """Reads a state and checks every byte of it; None if there is no such file.

    Raises:
        InputError: the file cannot be read, is damaged, or is no state of a run.
    """
    if not path.exists():
        return None
    try:
        return _checked(path)
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        reason = "it lacks an entry" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(
            f"{path}: damaged, or no state of a run ({reason}); remove it to go on without it, or give another folder"
        ) from None


def _checked(path: Path) -> State:
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
    text = header[_NUMBERS]
    if header[_DIGEST] != _digest(text, tensors):
        raise ValueError("its content does not match its SHA-256")
    numbers = json.loads(text)
    if not isinstance(numbers, dict):
        raise ValueError("its numbers are no table")  # noqa: TRY004  # one kind of error for all damage
    return State(numbers, tensors)


def _pieces(state: State) -> Iterator[bytes]:
    """The content of a file."""
    text = json.dumps(dict(state.numbers), separators=(",", ":"))
    names = sorted(state.tensors)
    ends = list(accumulate((state.tensors[name].nbytes for name in names), initial=0))
    header: dict[str, Any] = {"__metadata__": {_NUMBERS: text, _DIGEST: _digest(text, state.tensors)}}
    for name, start, end in zip(names, ends, ends[1:], strict=False):
        tensor = state.tensors[name]
        header[name] = {
            "dtype": _KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors of eight bytes are aligned
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    for name in names:
        yield _bytes_of(state.tensors[name])


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {_KINDS[tensor.dtype]} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
