"""What a checkpoint claims is compared with what the file holds and the network needs, before it is believed."""

from __future__ import annotations

import json
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

import fxptq
from fxptq.checkpoint import file as ck
from fxptq.checkpoint.metadata import FORMAT_VERSION
from fxptq.errors import CheckpointError, InputError
from tests.fuzz.checkpoints import Masked, original, sealed
from tests.fuzz.hostile import nested
from tests.tiny import inputs

Index = dict[str, Any]


def forged(change: Callable[[Index], None], name: str = "masked", tensors: dict[str, Tensor] | None = None) -> bytes:
    """A checkpoint whose index was changed, with the checksum that belongs to it."""
    held = load(original(name)) | (tensors or {})
    index = json.loads(zlib.decompress(held["metadata"].numpy().tobytes()))
    change(index)
    held["metadata"] = as_bytes(zlib.compress(json.dumps(index).encode()))
    return sealed(held)


def as_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def refused(data: bytes, folder: Path, words: str) -> str:
    path = folder / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: .*{words}") as caught:
        fxptq.load(path, Masked())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def operand(index: Index, slot: str = "weight") -> dict[str, Any]:
    return next(o for site in index["meta"]["sites"] for o in site["operands"] if o["slot"] == slot)


def test_an_unchanged_forgery_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(forged(lambda _: None))
    fxptq.load(tmp_path / "m", Masked())


CHANGES: dict[str, tuple[Callable[[Index], object], str]] = {
    "a site names no codes": (lambda index: operand(index).update(codes=""), "no site uses the codes of model.head"),
    "codes are named that are not there": (
        lambda index: operand(index).update(codes="model.other"),
        "no codes for model.other",
    ),
    "the site's bits are others": (lambda index: operand(index).update(bits=3), "has 3 bits and its codes"),
    "bits without a quantizer": (lambda index: operand(index, "input").update(quantizer=""), "bits and no quantizer"),
    "a quantizer without bounds": (
        lambda index: operand(index, "input").update(quantizer="x"),
        "it has no bounds for x",
    ),
    "groups that bounds do not have": (
        lambda index: operand(index, "input").update(groups=10**12),
        "has 1000000000000 ranges and 1 bounds",
    ),
    "no site at all": (lambda index: index["meta"].update(sites=[]), "no site uses the codes"),
    "a shape of the network's size elsewhere": (
        lambda index: index["floats"]["mask"].__setitem__(1, [8, 64, 64]),
        r"another architecture: mask has shape \(8, 64, 64\)",
    ),
    "a shape beyond the file": (
        lambda index: index["floats"]["index"].__setitem__(1, [1 << 20, 1 << 20]),
        "another architecture: index has shape",
    ),
    "a shape beyond everything": (
        lambda index: index["floats"]["index"].__setitem__(1, [0, 1 << 40, 1 << 40]),
        "more elements than any tensor",
    ),
    "an example beyond the memory": (
        lambda index: index["meta"].update(example_shape=[1, 3, 1 << 20, 1 << 20]),
        "is too large",
    ),
    "a dtype that is none": (lambda index: index["floats"]["mask"].__setitem__(0, "Tensor"), "'Tensor' is no dtype"),
    "nesting": (lambda index: index["meta"].update(task=nested(900)), "cannot be understood"),
    "a number of thousands of digits": (lambda index: index["meta"].update(seed=10**4000), "cannot be understood"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_that_lies_is_refused(change: str, tmp_path: Path) -> None:
    make, words = CHANGES[change]
    refused(forged(lambda index: make(index) and None), tmp_path, words)


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def test_a_run_is_inflated_to_what_the_network_needs_and_no_further(tmp_path: Path) -> None:
    tensors = load(original("masked"))
    key = next(key for key in tensors if key.startswith("deflated."))
    data = as_bytes(bomb(1 << 28))
    tracemalloc.start()
    refused(forged(lambda _: None, tensors={key: data}), tmp_path, "its index does not fit its tensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26

    def claim(index: Index) -> None:
        index["floats"] = {name: (kind, [1 << 13, 1 << 13]) for name, (kind, _) in index["floats"].items()}

    refused(forged(claim, tensors={key: data}), tmp_path, "another architecture")
    with pytest.raises(CheckpointError, match=r"bytes claim \d+ bytes of tensors"):  # without a network to compare with
        ck.read(tmp_path / "m.safetensors")


def test_a_compressed_index_stops_at_its_limit(tmp_path: Path) -> None:
    tensors = load(original("masked"))
    tensors["metadata"] = as_bytes(bomb(1 << 27))
    refused(sealed(tensors), tmp_path, "cannot be understood")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("1", "no fxptq checkpoint"),
        (1e300, "no fxptq checkpoint"),
        (0, "no fxptq"),
        (True, "no fxptq"),
        (FORMAT_VERSION + 1, "is newer"),
    ],
)
def test_a_version_is_a_number(version: Any, words: str, tmp_path: Path) -> None:
    refused(sealed(load(original("masked")), version), tmp_path, words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bounds_are_numbers_in_order(value: float, tmp_path: Path) -> None:
    bounds = load(original("masked"))["bounds"]
    bounds[-1] = value
    refused(forged(lambda _: None, tensors={"bounds": bounds}), tmp_path, "are no numbers, or upside down")


@pytest.mark.parametrize(("name", "dtype"), [("codes", torch.int16), ("bounds", torch.float64)])
def test_runs_are_of_their_types(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    run = load(original("masked"))[name].to(dtype)
    refused(forged(lambda _: None, tensors={name: run}), tmp_path, "its index does not fit its tensors")


def test_a_forged_header_is_one_line(tmp_path: Path) -> None:
    data = original("masked")
    for text in (b"[" * 60000, b'{"__metadata__":' + b"[" * 50000, b"{}", b'{"__metadata__": 3}', b"\xff\xfe{"):
        for length in (len(text), 1 << 40, (1 << 64) - 1, 3):
            refused(length.to_bytes(8, "little") + text + data[200:], tmp_path, "")


def test_a_device_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="/dev/zero: cannot be read: it is a device"):
        fxptq.load("/dev/zero")


def test_an_example_that_no_checkpoint_holds_is_refused_before_the_work() -> None:
    example = torch.ones(1).expand(1, 3, 4096, 4096)
    with pytest.raises(InputError, match=r"\(1, 3, 4096, 4096\); expected 16777216 elements at most"):
        fxptq.quantize(Masked(), example, fxptq.Bits(4, 4), inputs())
