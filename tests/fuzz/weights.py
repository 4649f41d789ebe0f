"""Weights files of every format that lie about themselves, and what is no weights file."""

from __future__ import annotations

import collections
import io
import json
import pickle
import pickletools
import struct
import zipfile
from functools import cache

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from tests.fuzz import hostile

CANARY = "fxptq_fuzz_canary"
"""A file that code in a weights file would make, were it run."""


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os  # noqa: PLC0415  # only its name goes into the file

        return os.system, (f"touch {CANARY}",)


def network() -> nn.Module:
    """The network that the weights are of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3))


@cache
def originals() -> tuple[bytes, ...]:
    """Weights in every format, and other files."""
    state = network().state_dict()
    wrapped = {"model": {f"module.{name}": x for name, x in state.items()}, "optimizer": {"state": {}}, "epoch": 3}
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.trace(network().eval(), torch.rand(1, 3, 8, 8)), scripted)
    return (
        save(dict(state)),
        *(_saved(content) for content in (state, wrapped, network(), {"a": Code()}, [1, 2], torch.zeros(2))),
        *(_saved(content, _use_new_zipfile_serialization=False) for content in (state, wrapped, {"a": Code()})),
        _saved(state, pickle_protocol=4),
        pickle.dumps(Code()),
        pickle.dumps({name: x.numpy() for name, x in state.items()}),
        scripted.getvalue(),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"<!doctype html><html><body>Not Found</body></html>",
        b'{"message": "Not Found"}',
    )


def forged(seed: int) -> bytes:
    """The bytes of a weights file."""
    rng = np.random.default_rng([seed, 4])
    data = originals()[int(rng.integers(len(originals())))]
    if rng.random() < 0.3:
        return _of_lies(rng)
    if rng.random() < 0.6:
        if data.startswith(b"PK"):
            return _with_entries(rng, data)
        if data[8:9] == b"{":
            return _with_header(rng, data)
        if data[:1] == b"\x80":
            return _with_opcodes(rng, data)
    return hostile.damaged(rng, data)


def _of_lies(rng: np.random.Generator) -> bytes:
    """A sound file of tensors that claim what they do not hold, under names and wrappers of all sorts."""
    state: dict[object, object] = dict(network().state_dict())
    for _ in range(int(rng.integers(1, 4))):
        name = list(state)[int(rng.integers(len(state)))]
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.is_sparse or tensor.numel() > 10**6:
            continue
        lies: dict[object, object] = {
            name: (
                lambda: torch.ones(1).expand(int(rng.choice([10, 10**6, 10**11]))),
                lambda tensor=tensor: tensor.to_sparse() if tensor.dim() else tensor,
                lambda: torch.empty(10**9, device="meta"),
                lambda tensor=tensor: tensor.to(torch.int8),
                lambda tensor=tensor: tensor.to(torch.complex64),
                lambda tensor=tensor: tensor.reshape(-1),
                lambda: hostile.value(rng),
            )[int(rng.integers(7))]()
        }
        match int(rng.integers(0, 6)):
            case 0:
                lies = {hostile.TEXTS[int(rng.integers(len(hostile.TEXTS)))]: state.pop(name)}
            case 1:
                lies = {int(rng.integers(9)): tensor}
            case 2:
                lies = {f"{name}_g": tensor, f"{name}_v": tensor}
            case 3 if len(state) > 1:
                del state[name]
                continue
        state.update(lies)
    content: object = state
    for _ in range(int(rng.integers(0, 4))):
        key = ("model", "ema", "state_dict", "net_g", 3, "x", "optimizer")[int(rng.integers(7))]
        content = {key: content, "epoch": 3} if rng.random() < 0.8 else [content]
    return _saved(content, _use_new_zipfile_serialization=bool(rng.random() < 0.8))


def _saved(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _with_header(rng: np.random.Generator, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(hostile.changed(rng, json.loads(data[8 : 8 + length]))).encode()
    claimed = len(text) if rng.random() < 0.8 else int(rng.integers(0, 2**63))
    return claimed.to_bytes(8, "little") + text + data[8 + length :]


def _with_entries(rng: np.random.Generator, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    packing = zipfile.ZIP_STORED
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(entries)))
        name, body = entries[at]
        match int(rng.integers(0, 7)):
            case 0 if len(entries) > 1:
                del entries[at]
            case 1:
                entries[at] = (name, hostile.damaged(rng, body))
            case 2:
                entries[at] = (str(hostile.value(rng, 3)).replace("\0", "")[:200] or "x", body)
            case 3:
                packing, entries[at] = zipfile.ZIP_DEFLATED, (name, bytes(1 << 26))
            case 4:
                entries.append((name, body[: len(body) // 2]))
            case _:
                entries = [(key, _with_opcodes(rng, x) if key.endswith("data.pkl") else x) for key, x in entries]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, body in entries:
            archive.writestr(name.encode("utf-8", "replace").decode(), body)
    return stream.getvalue()


def _with_opcodes(rng: np.random.Generator, data: bytes) -> bytes:
    """A pickle with numbers, names and calls exchanged, which stays a pickle as far as that goes."""
    try:
        codes = [(code.name, at) for code, _, at in pickletools.genops(data)]
    except (ValueError, IndexError):
        return hostile.damaged(rng, data)
    found = bytearray(data)
    by_name = collections.defaultdict(list)
    for name, at in codes:
        by_name[name].append(at)
    for _ in range(int(rng.integers(1, 4))):
        name = list(by_name)[int(rng.integers(len(by_name)))]
        at = by_name[name][int(rng.integers(len(by_name[name])))]
        if name == "BININT1":
            found[at + 1] = int(rng.integers(0, 256))
        elif name == "BININT2":
            found[at + 1 : at + 3] = rng.bytes(2)
        elif name in {"BININT", "BINUNICODE", "LONG_BINPUT"}:
            found[at + 1 : at + 5] = struct.pack("<I", int(rng.choice([0, 1, 65536, 2**31 - 1, 2**32 - 1])))
        elif name == "GLOBAL":
            end = found.index(b"\n", found.index(b"\n", at) + 1)
            names = [
                b"os\nsystem",
                b"builtins\neval",
                b"torch\nTensor",
                b"builtins\nbytearray",
                b"torch\nload",
                b"a\nb",
            ]
            found[at + 1 : end] = names[int(rng.integers(len(names)))]
            return bytes(found)
        else:
            found[at] = int(rng.integers(0, 256))
    return bytes(found)
