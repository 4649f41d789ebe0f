"""The quantized network on disk: one .safetensors file of packed codes, bounds, float tensors and metadata.

A network has hundreds of tiny tensors, and a safetensors header spends about a hundred bytes on each. Codes, bounds and
floats (one run per dtype) are therefore stored end to end, with an index beside the metadata as compressed JSON. A run
of floats that shrinks much (attention masks, index tables) is stored deflated.
Nothing in the file depends on when or where it was written, so equal checkpoints are equal files. A file is read whole
or not at all: every byte of content is under one SHA-256. A run is inflated only to the size its index says, and
`Stored` lets that index be compared with the network before (`fxptq.load` does). Of a file of many gigabytes nothing
but header and index is read before that.
"""

from __future__ import annotations

import hashlib
import json
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from fxptq.checkpoint import index as indexes
from fxptq.checkpoint.index import Index
from fxptq.checkpoint.metadata import FORMAT_VERSION, FloatSite, Metadata, PassRecord, Record
from fxptq.errors import CheckpointError, InputError
from fxptq.io.files import remove_abandoned, write_bytes

__all__ = [
    "ByteCounts",
    "Checkpoint",
    "FloatSite",
    "Metadata",
    "PackedCodes",
    "PassRecord",
    "Stored",
    "byte_counts",
    "open_file",
    "overhead",
    "read",
    "write",
]

_HEADER = "fxptq"  # the one key of the safetensors header's own metadata: format version and digest
_METADATA, _CODES, _BOUNDS, _FLOATS, _DEFLATED = "metadata", "codes", "bounds", "floats.", "deflated."
_WORTH_DEFLATING = 4096, 0.8  # bytes saved, and share of the size: a run beyond both is mostly masks and tables
_LONGEST_HEADER = 1 << 16  # bytes; ours names five tensors or so
_LONGEST_INDEX = 1 << 26  # bytes, deflated
_AT_ONCE = 1 << 30  # bytes of a file that is read before its index was compared with a network
_INFLATION = 1 << 26, 64  # bytes, and times the file's size: what floats may inflate to where no network is given


@dataclass(frozen=True)
class PackedCodes:
    """Codes of one weight of `shape`; `fxptq.quant.bitstream.pack` made `packed` from codes of `bits` bits."""

    packed: Tensor
    bits: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A quantized network as data.

    Attributes:
        meta: How it was made.
        codes: Weight codes by weight name.
        bounds: `(lower, width)` by quantizer key, float32 `[ranges]` each.
        floats: Everything else of the state, of any dtype, by name.
    """

    meta: Metadata
    codes: Mapping[str, PackedCodes]
    bounds: Mapping[str, tuple[Tensor, Tensor]]
    floats: Mapping[str, Tensor]


@dataclass(frozen=True)
class ByteCounts:
    """The number of bytes of each part of a checkpoint file; `total` is the size of the file."""

    codes: int
    bounds: int
    floats: int
    metadata: int
    header: int

    @property
    def total(self) -> int:
        """Bytes of the whole file."""
        return self.codes + self.bounds + self.floats + self.metadata + self.header


class _Header(Record):
    """The entry of fxptq in the header of the file."""

    format: Annotated[int, Field(ge=1, strict=True)]
    sha256: str


@dataclass(frozen=True)
class Stored:
    """A checkpoint file whose header and index are right, with nothing inflated or decoded yet.

    Attributes:
        source: the path of the file.
        index: the names, shapes and types of its content.
        runs: the joined tensors, by their names in the file; None of a file that is too large to be read at once.
        size: bytes of the file.
    """

    source: Path
    index: Index
    runs: Mapping[str, Tensor] | None
    size: int

    def content(self) -> Checkpoint:
        """Cuts the runs into the tensors that the index names.

        The tensors take the memory that the index claims, so compare the index with the network first.

        Raises:
            CheckpointError: the content does not match its digest, the runs do not fit the index, or a bound is not
                finite.
        """
        if self.runs is None:
            return _read_whole(self.source).content()
        index = self.index
        floats: dict[str, Tensor] = {}
        for kind in index.kinds:
            members = index.members(kind)
            parts = self._cut(
                self._floats(self.runs, kind), [prod(shape) for shape in members.values()], getattr(torch, kind)
            )
            floats |= {name: part.reshape(shape) for (name, shape), part in zip(members.items(), parts, strict=True)}
        lengths = index.code_lengths
        packed = self._cut(self.runs[_CODES], lengths, torch.uint8)
        counts = list(index.bounds.values())
        bounds = self._cut(self.runs[_BOUNDS], counts + counts, torch.float32)
        lower, width = bounds[: len(counts)], bounds[len(counts) :]
        for key, low, span in zip(index.bounds, lower, width, strict=True):
            if not (low.isfinite().all() and span.isfinite().all() and (span >= 0).all()):
                raise CheckpointError(f"{self.source}: damaged: the bounds of {key} are no numbers, or upside down")
        return Checkpoint(
            meta=index.meta,
            codes={
                name: PackedCodes(part, bits, tuple(shape))
                for (name, (bits, shape)), part in zip(index.codes.items(), packed, strict=True)
            },
            bounds=dict(zip(index.bounds, zip(lower, width, strict=True), strict=True)),
            floats={name: floats[name] for name in index.floats},
        )

    def _floats(self, runs: Mapping[str, Tensor], kind: str) -> Tensor:
        """The run of floats of a dtype, inflated if need be."""
        if _DEFLATED + kind not in runs:
            return runs[_FLOATS + kind]
        expected, dtype = self.index.bytes_of(kind), getattr(torch, kind)
        inflating = zlib.decompressobj()
        try:
            data = inflating.decompress(bytes(runs[_DEFLATED + kind].numpy()), expected + 1)
        except (zlib.error, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{self.source}: damaged: its {kind} tensors cannot be inflated ({error})") from error
        if len(data) != expected:
            raise _unfit(self.source)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype) if data else torch.empty(0, dtype=dtype)

    def _cut(self, joined: Tensor, counts: list[int], dtype: torch.dtype) -> list[Tensor]:
        if sum(counts) != joined.numel() or joined.dim() != 1 or joined.dtype is not dtype:
            raise _unfit(self.source)
        return list(torch.split(joined, counts)) if counts else []


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: write a temporary file beside it, flush it to the disk, then rename it.

    Args:
        path: The path of the file; missing folders are made, an existing file is replaced.
        checkpoint: The content. Equal checkpoints give equal files, byte for byte.

    Raises:
        CheckpointError: if the file cannot be written, or the metadata is no JSON (a number that is not finite).
    """
    target = Path(path)
    data = _encode(target, checkpoint)
    remove_abandoned(target.parent)
    try:
        write_bytes(target, data)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Raises:
        CheckpointError: if the file is missing, truncated, no fxptq checkpoint, changed since it was written, of a
            newer format, or claims far more than it holds.
    """
    stored = open_file(path)
    claimed = sum(stored.index.bytes_of(kind) for kind in stored.index.kinds)
    least, times = _INFLATION
    if claimed > max(least, times * stored.size):
        raise CheckpointError(f"{path}: its {stored.size} bytes claim {claimed} bytes of tensors")
    return stored.content()


def open_file(path: str | Path) -> Stored:
    """Read a checkpoint file and check its digest and its index; raises CheckpointError as `read` does.

    Of a file beyond 1 GiB only header and index are read; `Stored.content` reads the rest and checks the digest.
    """
    source = Path(path)
    try:
        size = source.stat().st_size
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    if size <= _AT_ONCE:
        return _read_whole(source)
    lengths, metadata = _index_alone(source, size)
    index = _index(source, lengths, metadata)
    most = {_METADATA: len(metadata), _CODES: sum(index.code_lengths), _BOUNDS: index.bytes_of_bounds}
    most |= {prefix + kind: index.bytes_of(kind) for prefix in (_FLOATS, _DEFLATED) for kind in index.kinds}
    if any(length > most[name] for name, length in lengths.items()):
        raise _unfit(source)
    return Stored(source, index, None, size)


def _read_whole(source: Path) -> Stored:
    """All of a file, with its digest and its index checked."""
    tensors, size = _load(source)
    metadata = tensors.get(_METADATA, torch.empty(0, dtype=torch.uint8))
    return Stored(source, _index(source, tensors, bytes(metadata.numpy())), tensors, size)


def _index(source: Path, names: Collection[str], metadata: bytes) -> Index:
    """The index of a file whose tensors have these names."""
    try:
        index = indexes.decode(metadata)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{source}: damaged: its metadata cannot be understood ({error})") from error
    if {name.replace(_DEFLATED, _FLOATS) for name in names} != {
        _METADATA, _CODES, _BOUNDS, *(_FLOATS + kind for kind in index.kinds),
    } or len(names) != 3 + len(index.kinds):  # fmt: skip
        raise CheckpointError(f"{source}: damaged: its tensors are not those its index names")
    return index


def _index_alone(source: Path, size: int) -> tuple[dict[str, int], bytes]:
    """The length of each tensor of a file, and the bytes of its index, without reading anything else."""
    with _opened(source) as (_, text, stream):
        try:
            spans = {name: entry["data_offsets"] for name, entry in json.loads(text).items() if name != "__metadata__"}
            lengths = {name: end - start for name, (start, end) in spans.items()}
            start, end = spans[_METADATA]
            whole = max(end for _, end in spans.values())
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(source, error) from error
        if (
            min(lengths.values()) < 0
            or not 0 <= start <= end <= start + _LONGEST_INDEX
            or 8 + len(text) + whole != size
        ):
            raise _damaged(source, "its header does not fit its size")
        stream.seek(8 + len(text) + start)
        return lengths, stream.read(end - start)


def byte_counts(path: str | Path) -> ByteCounts:
    """Count the bytes of each part of a checkpoint file; raises CheckpointError as `read` does."""
    tensors, total = _load(Path(path))
    nbytes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    return ByteCounts(
        codes=nbytes.get(_CODES, 0),
        bounds=nbytes.get(_BOUNDS, 0),
        floats=sum(size for name, size in nbytes.items() if name.startswith((_FLOATS, _DEFLATED))),
        metadata=nbytes.get(_METADATA, 0),
        header=total - sum(nbytes.values()),
    )


def overhead(checkpoint: Checkpoint) -> int:
    """Count the bytes that a checkpoint takes as a file beside its codes."""
    return len(_encode(Path("checkpoint"), checkpoint)) - sum(one.packed.numel() for one in checkpoint.codes.values())


def _encode(target: Path, checkpoint: Checkpoint) -> bytes:
    content = Index(
        meta=checkpoint.meta,
        codes={name: (codes.bits, list(codes.shape)) for name, codes in checkpoint.codes.items()},
        bounds={key: lower.numel() for key, (lower, _) in checkpoint.bounds.items()},
        floats={name: (_kind(tensor), list(tensor.shape)) for name, tensor in checkpoint.floats.items()},
    )
    try:
        text = json.dumps(content.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{target}: not written: the metadata holds a number that is not finite") from error
    try:
        metadata = indexes.encode(content, text)
    except ValueError as error:
        raise CheckpointError(f"{target}: not written: {error}") from error
    tensors = {
        _METADATA: torch.frombuffer(bytearray(metadata), dtype=torch.uint8),
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
    with _opened(source) as (header, text, stream):
        data = len(text).to_bytes(8, "little") + text + stream.read()
    try:
        tensors = load(data)
    except Exception as error:  # whatever the reader raises on damage
        raise _damaged(source, error) from error
    if header.sha256 != _digest(header.format, tensors):
        raise CheckpointError(f"{source}: damaged: its content does not match its SHA-256")
    return tensors, len(data)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[_Header, bytes, BinaryIO]]:
    """The entry of fxptq in the header of a file, the whole header, and the file, open where its data begin."""
    try:
        with _stream(source) as stream:
            yield *_header(source, stream), stream
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    except MemoryError as error:
        raise CheckpointError(f"{source}: cannot be read: it is larger than the memory") from error


def _stream(source: Path) -> BinaryIO:
    mode = source.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise ValueError("it is a device; expected a file")
    return source.open("rb")


def _header(source: Path, stream: BinaryIO) -> tuple[_Header, bytes]:
    """The entry of fxptq in the header, and the whole header."""
    length = int.from_bytes(stream.read(8), "little")
    text = stream.read(min(length, _LONGEST_HEADER))
    try:
        own = json.loads(text).get("__metadata__", {}).get(_HEADER) if length <= _LONGEST_HEADER else None
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(source, error) from error
    if length > _LONGEST_HEADER and (not text.startswith(b"{") or source.stat().st_size < length):
        raise _damaged(source, "it has no header")
    try:
        header = _Header.model_validate_json(own if isinstance(own, str) else "null")
    except ValidationError as error:
        raise CheckpointError(f"{source}: a safetensors file, but no fxptq checkpoint") from error
    if header.format > FORMAT_VERSION:
        raise CheckpointError(
            f"{source}: format {header.format} is newer than the {FORMAT_VERSION} this fxptq reads: update fxptq"
        )
    return header, text


def _unreadable(source: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}")


def _unfit(source: Path) -> CheckpointError:
    return CheckpointError(f"{source}: damaged: its index does not fit its tensors")


def _damaged(source: Path, reason: object) -> CheckpointError:
    one_line = " ".join(str(reason).split())
    return CheckpointError(f"{source}: truncated, damaged or no safetensors file ({one_line})")


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


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
