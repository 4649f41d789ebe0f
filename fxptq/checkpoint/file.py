"""The quantized network on disk: one .safetensors file of packed codes, bounds, what stayed in float, and metadata.

A network has hundreds of tiny tensors, and a safetensors header spends about a hundred bytes on each: codes, bounds and
floats (one run per dtype) are therefore stored end to end, with an index beside the metadata as compressed JSON. A run
of floats that shrinks much (attention masks, index tables) is stored deflated.
Nothing in the file depends on when or where it was written, so equal checkpoints are equal files. A file is read whole
or not at all: every byte of content is under one SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fxptq.checkpoint.metadata import FORMAT_VERSION, FloatSite, Metadata, PassRecord, Record
from fxptq.errors import CheckpointError

__all__ = ["Checkpoint", "FloatSite", "Metadata", "PackedCodes", "PassRecord", "Sizes", "read", "sizes", "write"]

_HEADER = "fxptq"  # the one key of the safetensors header's own metadata: format version and digest
_METADATA, _CODES, _BOUNDS, _FLOATS, _DEFLATED = "metadata", "codes", "bounds", "floats.", "deflated."
_WORTH_DEFLATING = 4096, 0.8  # bytes saved, and share of the size: a run beyond both is mostly masks and tables
_MAX_METADATA = 1 << 28  # bytes of JSON; a compressed bomb stops here

_Shape = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16)]


@dataclass(frozen=True)
class PackedCodes:
    """Codes of one weight of `shape`: `packed` is what `fxptq.quant.bitstream.pack` makes of codes of `bits` bits."""

    packed: Tensor
    bits: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A quantized network as data.

    Attributes:
        meta: How it was made.
        codes: Weight codes by weight name.
        bounds: `(lower, width)` by quantizer key, float32 `[groups]` each.
        floats: Everything else of the state, of any dtype, by name.
    """

    meta: Metadata
    codes: Mapping[str, PackedCodes]
    bounds: Mapping[str, tuple[Tensor, Tensor]]
    floats: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Where the bytes of a checkpoint file are; `total` is the size of the file."""

    codes: int
    bounds: int
    floats: int
    metadata: int
    header: int

    @property
    def total(self) -> int:
        """Bytes of the whole file."""
        return self.codes + self.bounds + self.floats + self.metadata + self.header


class _Content(Record):
    """The JSON inside the file: the metadata, and the index that cuts the joined tensors."""

    meta: Metadata
    codes: dict[str, tuple[Annotated[int, Field(ge=1, le=8)], _Shape]]
    bounds: dict[str, Annotated[int, Field(ge=0)]]
    floats: dict[str, tuple[str, _Shape]]


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: beside its place first, flushed to the disk, then moved there.

    Args:
        path: Where to; missing folders are made, an existing file is replaced.
        checkpoint: What to write. Equal checkpoints give equal files, byte for byte.

    Raises:
        CheckpointError: if the file cannot be written, or the metadata is no JSON (a number that is not finite).
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    data = _encode(target, checkpoint)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    _sync_folder(target.parent)


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Raises:
        CheckpointError: if the file is missing, truncated, no fxptq checkpoint, changed since it was written, or of a
            newer format.
    """
    source = Path(path)
    tensors, _ = _load(source)
    content = _content(source, tensors)
    kinds = sorted({dtype for dtype, _ in content.floats.values()})
    tensors = {name.replace(_DEFLATED, _FLOATS): tensor for name, tensor in tensors.items()} | {
        _FLOATS + kind: _inflate(source, tensors[_DEFLATED + kind], kind, content.floats)
        for kind in kinds
        if _DEFLATED + kind in tensors
    }
    if set(tensors) != {_METADATA, _CODES, _BOUNDS, *(_FLOATS + kind for kind in kinds)}:
        raise CheckpointError(f"{source}: damaged: its tensors are not those its index names")
    packed = _cut(source, tensors[_CODES], [-(-prod(shape) * bits // 8) for bits, shape in content.codes.values()])
    groups = list(content.bounds.values())
    bounds = _cut(source, tensors[_BOUNDS], groups + groups)
    lower, width = bounds[: len(groups)], bounds[len(groups) :]
    floats: dict[str, Tensor] = {}
    for kind in kinds:
        members = {name: shape for name, (dtype, shape) in content.floats.items() if dtype == kind}
        parts = _cut(source, tensors[_FLOATS + kind], [prod(shape) for shape in members.values()])
        floats |= {name: part.reshape(shape) for (name, shape), part in zip(members.items(), parts, strict=True)}
    return Checkpoint(
        meta=content.meta,
        codes={
            name: PackedCodes(part, bits, tuple(shape))
            for (name, (bits, shape)), part in zip(content.codes.items(), packed, strict=True)
        },
        bounds=dict(zip(content.bounds, zip(lower, width, strict=True), strict=True)),
        floats={name: floats[name] for name in content.floats},
    )


def sizes(path: str | Path) -> Sizes:
    """Count where the bytes of a checkpoint file are; raises CheckpointError as `read` does."""
    tensors, total = _load(Path(path))
    nbytes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    return Sizes(
        codes=nbytes.get(_CODES, 0),
        bounds=nbytes.get(_BOUNDS, 0),
        floats=sum(size for name, size in nbytes.items() if name.startswith((_FLOATS, _DEFLATED))),
        metadata=nbytes.get(_METADATA, 0),
        header=total - sum(nbytes.values()),
    )


def _encode(target: Path, checkpoint: Checkpoint) -> bytes:
    content = _Content(
        meta=checkpoint.meta,
        codes={name: (codes.bits, list(codes.shape)) for name, codes in checkpoint.codes.items()},
        bounds={key: lower.numel() for key, (lower, _) in checkpoint.bounds.items()},
        floats={name: (_kind(tensor), list(tensor.shape)) for name, tensor in checkpoint.floats.items()},
    )
    try:
        text = json.dumps(content.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{target}: not written: the metadata holds a number that is not finite") from error
    tensors = {
        _METADATA: torch.frombuffer(bytearray(zlib.compress(text.encode(), 9)), dtype=torch.uint8),
        _CODES: _join([codes.packed for codes in checkpoint.codes.values()], torch.uint8),
        _BOUNDS: _join([pair[side] for side in (0, 1) for pair in checkpoint.bounds.values()], torch.float32),
    }
    for kind in sorted({kind for kind, _ in content.floats.values()}):
        members = [tensor for tensor in checkpoint.floats.values() if _kind(tensor) == kind]
        run = _join(members, members[0].dtype)
        deflated = zlib.compress(run.view(torch.uint8).numpy().tobytes() if run.numel() else b"", 9)
        size = run.numel() * run.element_size()
        if len(deflated) < min(size - _WORTH_DEFLATING[0], size * _WORTH_DEFLATING[1]):
            tensors[_DEFLATED + kind] = torch.frombuffer(bytearray(deflated), dtype=torch.uint8)
        else:
            tensors[_FLOATS + kind] = run
    version = checkpoint.meta.format_version
    header = {"format": version, "sha256": _digest(version, tensors)}
    return save(tensors, metadata={_HEADER: json.dumps(header)})


def _load(source: Path) -> tuple[dict[str, Tensor], int]:
    """Tensors and length of a file whose header, version and digest are right."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error.strerror or error}") from error
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: truncated, damaged or no safetensors file ({error})") from error
    # `load` has checked that the first eight bytes are the length of a JSON header.
    own = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}).get(_HEADER)
    try:
        header = json.loads(own or "null")
        version, digest = int(header["format"]), str(header["sha256"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{source}: a safetensors file, but no fxptq checkpoint") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source}: format {version} is newer than the {FORMAT_VERSION} this fxptq reads: update fxptq"
        )
    if digest != _digest(version, tensors):
        raise CheckpointError(f"{source}: damaged: its content does not match its SHA-256")
    return tensors, len(data)


def _content(source: Path, tensors: Mapping[str, Tensor]) -> _Content:
    try:
        text = zlib.decompressobj().decompress(bytes(tensors[_METADATA].numpy()), _MAX_METADATA)
        return _Content.model_validate_json(text)
    except (KeyError, ValueError, zlib.error) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{source}: damaged: its metadata cannot be understood ({cause})") from error


def _digest(version: int, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"fxptq {version}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {_kind(tensor)} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _join(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Lay tensors end to end, row-major, on the CPU."""
    rows = [tensor.detach().cpu().to(dtype).reshape(-1) for tensor in tensors]
    return torch.cat([torch.empty(0, dtype=dtype), *rows])


def _cut(source: Path, joined: Tensor, counts: list[int]) -> list[Tensor]:
    if sum(counts) != joined.numel() or joined.dim() != 1:
        raise CheckpointError(f"{source}: damaged: its index does not fit its tensors")
    return list(torch.split(joined, counts)) if counts else []


def _inflate(source: Path, deflated: Tensor, kind: str, index: Mapping[str, tuple[str, list[int]]]) -> Tensor:
    """The run of floats of that dtype, whose length the index says."""
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{source}: damaged: {kind!r} is no dtype")
    expected = sum(prod(shape) for found, shape in index.values() if found == kind) * dtype.itemsize
    try:
        data = zlib.decompressobj().decompress(bytes(deflated.numpy()), expected + 1)
    except zlib.error as error:
        raise CheckpointError(f"{source}: damaged: its {kind} tensors cannot be inflated ({error})") from error
    if len(data) != expected:
        raise CheckpointError(f"{source}: damaged: its index does not fit its tensors")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype) if data else torch.empty(0, dtype=dtype)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, on systems where a folder can be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
