"""Reads a checkpoint of fxptq with numpy alone, as docs/checkpoint.md specifies the file, and prints its tensors.

    python read_checkpoint.py FILE.safetensors

It is a specification that runs: it imports nothing of fxptq, so it can be translated into another language.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

NEWEST = 2
STORED = {"U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U16": "uint16", "U32": "uint32",
          "U64": "uint64", "BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
          "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # fmt: skip
RAW = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}  # numpy has no such types: bits
AXIS = {"conv_transpose2d": 1}  # the axis of a weight along which its outputs lie; 0 for every other kind


@dataclass
class Content:
    """Weights decoded from codes, everything else that is a tensor of the network, and the tensors of quantizers."""

    index: dict[str, Any]
    weights: dict[str, np.ndarray]
    floats: dict[str, np.ndarray]
    quantizers: dict[str, dict[str, np.ndarray]]


def need(fits: bool, complaint: str) -> None:
    """Refuses a file that does not fit."""
    if not fits:
        raise ValueError(complaint)


def read(path: str | Path) -> Content:
    """Everything in a checkpoint; raises ValueError for a damaged one."""
    try:
        return _content(Path(path).read_bytes())
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, zlib.error) as error:
        raise ValueError(f"damaged: {error!r}") from error


def _content(file: bytes) -> Content:
    entries, data, own = _safetensors(file)
    need(isinstance(own, str), "no fxptq checkpoint")
    own = json.loads(own)
    need(1 <= own["format"] <= NEWEST, f"format {own['format']} is newer than {NEWEST}")
    digest = hashlib.sha256(f"fxptq {own['format']}\n".encode())
    for name in sorted(entries):
        kind, shape, (start, end) = entries[name]
        digest.update(f"{name} {kind} {shape}\n".encode() + data[start:end])
    need(digest.hexdigest() == own["sha256"], "the content does not match its SHA-256")
    run = {name: data[start:end] for name, (_, _, (start, end)) in entries.items()}
    index = json.loads(zlib.decompress(run["metadata"]))
    floats = _floats(index, run)
    bounds = _bounds(index, run)
    quantizers = {key: {"lower": lower, "width": width} for key, (lower, width) in bounds.items()}
    for name in [name for name in floats if name.startswith(".")]:
        key, _, field = name[1:].rpartition(".")
        quantizers.setdefault(key, {})[field] = floats.pop(name)
    return Content(index, _weights(index, run["codes"], quantizers), floats, quantizers)


def _safetensors(file: bytes) -> tuple[dict[str, Any], bytes, Any]:
    """Kind, shape and place of each tensor, the bytes behind the header, and the entry `fxptq` of the header."""
    length = struct.unpack("<Q", file[:8])[0] if len(file) >= 8 else 0
    need(0 < length <= 65536 and 8 + length <= len(file), "no safetensors file, or its header is too long")
    header, data, place = json.loads(file[8 : 8 + length]), file[8 + length :], 0
    own = header.pop("__metadata__", {}).get("fxptq")
    entries = {name: (STORED[e["dtype"]], e["shape"], e["data_offsets"]) for name, e in header.items()}
    for kind, shape, (start, end) in sorted(entries.values(), key=lambda entry: entry[2]):
        need(start == place and end - start == prod(shape) * _type(kind).itemsize, "the tensors do not fit the file")
        place = end
    need(place == len(data), "the tensors do not fit the file")
    return entries, data, own


def _type(kind: str) -> np.dtype:
    return np.dtype(RAW.get(kind, kind)).newbyteorder("<")


def _cut(data: bytes, counts: list[int], kind: str) -> list[np.ndarray]:
    """A run, cut into arrays of so many elements."""
    need(len(data) == sum(counts) * _type(kind).itemsize, f"the index does not fit the run of {kind}")
    return np.split(np.frombuffer(data, _type(kind)), np.cumsum(counts)[:-1]) if counts else []


def _floats(index: dict[str, Any], run: dict[str, bytes]) -> dict[str, np.ndarray]:
    floats = {}
    for kind in sorted({kind for kind, _ in index["floats"].values()}):
        shapes = {name: shape for name, (its, shape) in index["floats"].items() if its == kind}
        data = zlib.decompress(run[f"deflated.{kind}"]) if f"deflated.{kind}" in run else run[f"floats.{kind}"]
        parts = _cut(data, [prod(shape) for shape in shapes.values()], kind)
        floats |= {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return floats


def _bounds(index: dict[str, Any], run: dict[str, bytes]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    counts = list(index["bounds"].values())
    parts = _cut(run["bounds"], counts + counts, "float32")
    lower, width = parts[: len(counts)], parts[len(counts) :]
    for low, span in zip(lower, width, strict=True):
        need(bool(np.isfinite(low).all() and np.isfinite(span).all() and (span >= 0).all()), "bounds are no numbers")
    return dict(zip(index["bounds"], zip(lower, width, strict=True), strict=True))


def _weights(index: dict[str, Any], data: bytes, quantizers: dict[str, Any]) -> dict[str, np.ndarray]:
    lengths = [-(-prod(shape) * bits // 8) for bits, shape in index["codes"].values()]
    packed = dict(zip(index["codes"], _cut(data, lengths, "uint8"), strict=True))
    weights = {}
    for site in index["meta"]["sites"]:
        for operand in site["operands"]:
            if not operand["codes"]:
                continue
            bits, shape = index["codes"][operand["codes"]]
            need(bits == operand["bits"], f"{site['name']} and its codes differ in bits")
            stream = np.unpackbits(packed[operand["codes"]], bitorder="little")[: prod(shape) * bits]
            codes = stream.reshape(-1, bits) @ (1 << np.arange(bits))
            axis = AXIS.get(site["kind"], 0) if operand["slot"] == "weight" else 0
            own = quantizers[operand["quantizer"]]
            weights[operand["codes"]] = _values(codes.reshape(shape), bits, own, operand["groups"], axis)
    need(set(weights) == set(packed), "codes belong to no site")
    return weights


def _values(codes: np.ndarray, bits: int, own: dict[str, np.ndarray], ranges: int, axis: int) -> np.ndarray:
    """The values of codes: one operation in float32 after another, in this order."""
    repeats = codes.shape[axis] // ranges if ranges > 1 else 1
    shape = [-1] + [1] * (codes.ndim - 1 - axis) if ranges > 1 else [1] * codes.ndim
    lower, width = (np.repeat(own[name].astype(np.float32), repeats).reshape(shape) for name in ("lower", "width"))
    values = codes.astype(np.float32) * (width / np.float32(2**bits - 1)) + lower
    if "factor" not in own and "inverse" not in own:
        return values
    factor = own["factor"].astype(np.float32) if "factor" in own else np.float32(1) / own["inverse"].astype(np.float32)
    if "exponents" in own:
        most = (127 // (2**bits - 1)).bit_length() - 1 if bits < 8 else 0
        factor = factor * np.exp2(np.minimum(own["exponents"], most).astype(np.float32))
    return values * factor + own["center"].astype(np.float32)


def main(path: str) -> None:
    """Prints the tensors of a checkpoint."""
    content = read(path)
    for name, weight in content.weights.items():
        bits, shape = content.index["codes"][name]
        print(f"{name:60} {bits} bits {shape} {weight.min():.6g} to {weight.max():.6g}")
    for name, tensor in content.floats.items():
        print(f"{name:60} {content.index['floats'][name][0]} {list(tensor.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
