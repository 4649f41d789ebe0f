"""docs/checkpoint.md: a reader of numpy alone, which imports nothing of fxptq, finds every value bit for bit."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxptq
from docs import read_checkpoint
from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.index import Index
from fxptq.checkpoint.metadata import FORMAT_VERSION, Metadata, OperandRecord, SiteRecord
from fxptq.errors import CheckpointError
from fxptq.graph.constants import attribute
from fxptq.graph.kinds import KINDS
from fxptq.quant.schemes.affine import Affine
from tests.docs.pages import DOCS
from tests.tiny import Medley, edsr, inputs, run, settings, swinir

Made = Callable[[], fxptq.QuantizedModel]


def quantized(model: nn.Module, bits: object, sites: dict[str, str] | None = None, **options: object) -> Made:
    return lambda: fxptq.quantize(model, inputs(1), bits, inputs(), settings(**options), sites=sites)  # type: ignore[arg-type]


def with_schemes(schemes: str) -> Made:
    recipe = settings()
    text = recipe.quantize.model_copy(update={"schemes": dict(part.split("=") for part in schemes.split())})
    changed = recipe.model_copy(update={"quantize": text})
    return lambda: fxptq.quantize(swinir(), inputs(1), 4, inputs(), changed)


def mapped() -> fxptq.QuantizedModel:
    """Weights with a factor for each input channel: some that half precision holds, or whose inverse it holds."""
    q = with_schemes("*.weight=affine")()
    for index, (key, quantizer) in enumerate(q.program.quantizers.items()):
        weight = q.program.weight_of(key)
        if weight is None or not isinstance(quantizer, Affine):
            continue
        generator = torch.Generator().manual_seed(index)
        factor = torch.rand((weight.shape[1],) + (1,) * (weight.dim() - 2), generator=generator) + 0.5
        quantizer.set_map((factor.half().float(), 1 / factor.half().float(), factor)[index % 3], index % 2 * 0.01)
        q.program.set_weight(key, quantizer(weight))
    return q


def stepped() -> fxptq.QuantizedModel:
    """Weights of convolutions whose columns have several steps, some with factors too."""
    recipe = settings()
    schemes = recipe.quantize.model_copy(update={"schemes": {"*.weight": "affine"}})
    q = fxptq.quantize(edsr(), inputs(1), 3, inputs(), recipe.model_copy(update={"quantize": schemes}))
    for index, (key, quantizer) in enumerate(q.program.quantizers.items()):
        weight = q.program.weight_of(key)
        if weight is None or not isinstance(quantizer, Affine):
            continue
        generator = torch.Generator().manual_seed(index)
        exponents = torch.randint(0, 6, weight.shape[1:], generator=generator, dtype=torch.uint8)
        factor = torch.rand(weight.shape[1], 1, 1, generator=generator) + 0.5
        quantizer.set_map(factor if index % 3 else 1.0, 0.0, exponents)
        quantizer.set_bounds(quantizer.lower, quantizer.upper)
        q.program.set_weight(key, quantizer(weight))
    return q


CASES: dict[str, Made] = {
    "swinir w2": quantized(swinir(), fxptq.Bits(2, 4)),
    "swinir w3": quantized(swinir(), fxptq.Bits(3, 3)),
    "edsr w4": quantized(edsr(), 4),
    "edsr w8": quantized(edsr(), 8),
    "medley w5": quantized(Medley(), fxptq.Bits(5, 6)),
    "mixed": quantized(swinir(), 4, {"*.qkv": "W7A8", "*.fc1": "W6A3", "*.fc2": "W2A2", "conv_first": "float"}),
    "per tensor": quantized(swinir(), 3, weight_granularity="tensor"),
    "in float32": quantized(Medley(), 4, float_dtype="fp32"),
    "maps": mapped,
    "columns of several steps": stepped,
    "shares": with_schemes("*.attention=shares *.query=affine"),
}


def bits_of(values: Tensor | np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@pytest.mark.parametrize("name", CASES)
def test_the_reader_finds_every_value_bit_for_bit(name: str, tmp_path: Path) -> None:
    q = CASES[name]()
    q.save(tmp_path / "net.safetensors")
    content, holder = read_checkpoint.read(tmp_path / "net.safetensors"), q.program.holder
    assert content.weights
    for target, weight in content.weights.items():
        own = attribute(holder, target)
        assert weight.shape == tuple(own.shape)
        assert bits_of(weight) == bits_of(own.detach()), target
    for target, tensor in content.floats.items():
        own = attribute(holder.model, target).detach()
        assert bits_of(tensor.astype(own.numpy().dtype)) == bits_of(own), target
    names = set(holder.model.state_dict()) - {"first.weight", "second.weight", "mean"}
    assert names <= set(content.floats) | {target.removeprefix("model.") for target in content.weights}
    for key, quantizer in q.program.quantizers.items():
        stored = content.quantizers[key]
        assert set(stored) == set(quantizer.stored())
        for field, tensor in quantizer.stored().items():
            assert bits_of(stored[field].astype(tensor.detach().numpy().dtype)) == bits_of(tensor.detach()), (
                key,
                field,
            )


def test_maps_and_shares_are_really_there(tmp_path: Path) -> None:
    found = set()
    for name in ("maps", "shares"):
        CASES[name]().save(tmp_path / name)
        content = read_checkpoint.read(tmp_path / name)
        found |= {field for own in content.quantizers.values() for field in own}
    assert found == {"lower", "width", "factor", "inverse", "center", "ceiling"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("stored") / "net.safetensors"
    CASES["edsr w4"]().save(path)
    return path.read_bytes()


@pytest.mark.parametrize("place", ["header", "metadata", "codes", "end"])
def test_damaged_files_are_refused_by_both_readers(place: str, stored: bytes, tmp_path: Path) -> None:
    header = int.from_bytes(stored[:8], "little")
    at = {"header": 20, "metadata": 8 + header + 40, "codes": len(stored) // 3, "end": len(stored) - 1}[place]
    path = tmp_path / "net.safetensors"
    path.write_bytes(stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1 :])
    with pytest.raises(ValueError, match=r"safetensors|SHA-256|damaged|Expecting|fit|decode|delimiter|control"):
        read_checkpoint.read(path)
    with pytest.raises(fxptq.CheckpointError):
        checkpoints.read(path)


@pytest.mark.parametrize("length", [0, 7, 8, 300, -1], ids=str)
def test_cut_files_are_refused(length: int, stored: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(stored[:length])
    with pytest.raises(ValueError, match=r"safetensors|SHA-256|damaged|Expecting|fit|decode|delimiter|control"):
        read_checkpoint.read(tmp_path / "net.safetensors")


def test_the_reader_imports_numpy_alone() -> None:
    tree = ast.parse((DOCS / "read_checkpoint.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    standard = {"__future__", "hashlib", "json", "struct", "sys", "zlib", "dataclasses", "math", "pathlib", "typing"}
    assert imported - standard == {"numpy"}


def test_the_reader_knows_the_axes_and_the_version() -> None:
    axes = {kind.name: kind.weight_axis for kind in KINDS if kind.weight_axis and not kind.reason}
    assert axes == read_checkpoint.AXIS
    assert read_checkpoint.NEWEST == FORMAT_VERSION


@pytest.mark.parametrize("record", [Metadata, SiteRecord, OperandRecord, Index], ids=lambda record: record.__name__)
def test_the_page_names_every_field(record: type) -> None:
    page = (DOCS / "checkpoint.md").read_text(encoding="utf-8")
    fields = set(record.model_fields)  # type: ignore[attr-defined]
    assert fields <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_reader_prints_a_table(stored: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.safetensors").write_bytes(stored)
    read_checkpoint.main(str(tmp_path / "net.safetensors"))
    assert "model.body.0.body.0.weight" in capsys.readouterr().out


def test_inspect_lists_the_tensors_that_the_reader_finds(stored: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(stored)
    content = read_checkpoint.read(tmp_path / "net.safetensors")
    ran = run("inspect", tmp_path / "net.safetensors", "--tensors", "--format", "md")
    assert (ran.status, ran.err) == (0, "")
    for name in (*content.weights, *content.floats, *content.quantizers):
        assert f"| {name} |" in ran.out


@pytest.mark.parametrize("field", ["exponents", "factor"])
def test_a_map_of_another_weight_is_damage_that_is_named(field: str, tmp_path: Path) -> None:
    stepped().save(tmp_path / "net.safetensors")
    checkpoint = checkpoints.read(tmp_path / "net.safetensors")
    name = next(name for name in checkpoint.floats if name.startswith(".body") and name.endswith(f".weight.{field}"))
    wrong = torch.ones(7, 3, 3, dtype=checkpoint.floats[name].dtype)
    changed = replace(checkpoint, floats=checkpoint.floats | {name: wrong})
    checkpoints.write(tmp_path / "wrong.safetensors", changed)
    with pytest.raises(CheckpointError, match=rf"wrong.safetensors: damaged: {name[1:].removesuffix('.' + field)}: "):
        fxptq.load(tmp_path / "wrong.safetensors", edsr())
