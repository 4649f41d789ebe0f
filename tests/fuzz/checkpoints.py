"""Checkpoints that were tampered with by somebody who knows the format, and forges its checksum."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import fxptq
from tests.fuzz import hostile
from tests.tiny import Medley, inputs, settings


class Masked(nn.Module):
    """A network with tables that a checkpoint deflates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.tail = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.register_buffer("mask", torch.zeros(64, 64, 8))
        self.register_buffer("index", torch.arange(4096).reshape(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.head(x) + self.mask[0, 0, 0] * self.index[0, 0]))


MODELS = {"medley": Medley, "masked": Masked}


@functools.cache
def original(name: str) -> bytes:
    """The checkpoint of a network."""
    model = MODELS[name]().eval()
    q = fxptq.quantize(model, inputs(1, 8), fxptq.Bits(4, 4), inputs(1, 8), settings())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        q.save(path)
        return path.read_bytes()


def forged(name: str, seed: int) -> bytes:
    """A checkpoint that is wrong somewhere; its checksum is right, except where the bytes of the file were damaged."""
    rng = np.random.default_rng([seed, 1])
    data = original(name)
    if rng.random() < 0.2:
        return hostile.damaged(rng, data)
    if rng.random() < 0.15:
        return _with_header(rng, data)
    tensors = load(data)
    index = json.loads(zlib.decompress(tensors["metadata"].numpy().tobytes()))
    version: Any = 1
    match int(rng.integers(0, 12)):
        case 0:
            _change_tensor(rng, tensors)
        case 1:
            deflated = [key for key in tensors if key.startswith("deflated.")] or ["deflated.float32"]
            tensors[deflated[0]] = _bytes(hostile.bomb(rng))
            for entry in index["floats"].values():
                entry[1] = [int(rng.choice([1 << 10, 1 << 14, 1 << 16])), 1 << 12]
        case 2:
            version = hostile.value(rng)
        case 3:
            tensors["metadata"] = _bytes(hostile.bomb(rng))
            return sealed(tensors, version)
        case 4:
            index = hostile.changed(rng, index)
        case 5:
            index[str(rng.choice(["codes", "bounds", "floats"]))] = {}
        case _:
            index = hostile.exchanged(rng, index)
    tensors["metadata"] = _bytes(zlib.compress(json.dumps(index).encode()))
    return sealed(tensors, version)


def sealed(tensors: dict[str, Tensor], version: Any = 1) -> bytes:
    """A checkpoint file of these tensors, with the checksum that belongs to them."""
    digest = hashlib.sha256(f"fxptq {version}\n".encode("utf-8", "backslashreplace"))
    for key in sorted(tensors):
        tensor = tensors[key]
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{key} {kind} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return save(tensors, metadata={"fxptq": json.dumps({"format": version, "sha256": digest.hexdigest()})})


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _change_tensor(rng: np.random.Generator, tensors: dict[str, Tensor]) -> None:
    key = list(tensors)[int(rng.integers(len(tensors)))]
    tensor = tensors.pop(key)
    match int(rng.integers(0, 6)):
        case 0:
            tensors[str(hostile.value(rng, 3)).encode("ascii", "replace").decode() or "x"] = tensor
        case 1:
            tensors[key] = tensor[: tensor.numel() // 2].clone()
        case 2:
            tensors[key] = torch.cat([tensor, tensor])
        case 3:
            tensors[key] = tensor.reshape(1, -1)
        case 4:
            tensors[key] = tensor.to(torch.float16)
        case _:
            raw = hostile.damaged(rng, tensor.view(torch.uint8).numpy().tobytes())
            size = tensor.element_size()
            tensors[key] = _bytes(raw[: len(raw) // size * size]).view(tensor.dtype) if len(raw) >= size else tensor[:0]


def _with_header(rng: np.random.Generator, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = hostile.changed(rng, json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = b'{"__metadata__":' + b"[" * int(rng.integers(1, 60000)) + text
    claimed = len(text) if rng.random() < 0.7 else int(rng.integers(0, 2**63))
    return claimed.to_bytes(8, "little") + text + data[8 + length :]
