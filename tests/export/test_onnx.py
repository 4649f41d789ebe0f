"""ONNX files: the runtime gives the simulation's output, codes are small, and what does not fit is said in a line."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxptq
from fxptq.errors import InputError
from fxptq.export.write import Exported
from fxptq.graph.constants import attribute
from tests.docs.test_checkpoint import mapped, with_schemes
from tests.tiny import OWN, Medley, edsr, inputs, run, settings, swinir, write_checkpoint

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")

UINT8, UINT4, INT8, INT4 = 2, 21, 3, 22


class Own(nn.Module):
    """A user's own network: convolutions, a residual and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        return F.pixel_shuffle(self.tail(y + self.body(F.relu(y))), 2)


class Several(Own):
    """The picture among other outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        y = super().forward(x)
        return y, [x * 2, y.mean((2, 3))]


class Fixed(nn.Module):
    """A network of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.places = nn.Parameter(torch.randn(8, 16, 16) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.relu(self.conv(x) + self.places))


def quantized(model: nn.Module, bits: object = 4, **options: object) -> fxptq.QuantizedModel:
    return fxptq.quantize(model, inputs(1), bits, inputs(), settings(**options))  # type: ignore[arg-type]


MADE = {
    "edsr w2a8": lambda: quantized(edsr(), fxptq.Bits(2, 8)),
    "edsr w3a3": lambda: quantized(edsr(), 3),
    "swinir w4a4": lambda: quantized(swinir(), 4),
    "swinir w8a8": lambda: quantized(swinir(), 8),
    "medley w5a6": lambda: quantized(Medley(), fxptq.Bits(5, 6)),
    "per tensor": lambda: quantized(swinir(), 4, weight_granularity="tensor"),
    "own": lambda: quantized(Own()),
    "several outputs": lambda: quantized(Several()),
    "maps of weights": mapped,
    "maps and shares": with_schemes("*.attention=shares *.query=affine"),
}


@pytest.mark.parametrize("name", MADE)
def test_the_runtime_gives_the_output_of_the_simulation(name: str, tmp_path: Path) -> None:
    q = MADE[name]()
    found = q.export(tmp_path / "net.onnx")
    assert found.free == (0, 2, 3)
    assert len(found.comparisons) >= 3
    assert len({one.shape for one in found.comparisons}) == len(found.comparisons)
    assert found.comparisons[-1].shape[0] == 2 or found.unfit == ()
    least = 30 if name == "edsr w3a3" else 50  # its output reaches 60 times white, and a code is an eighth of its range
    for one in found.comparisons:
        assert one.psnr > least, one


def ran(path: Path, x: Tensor) -> list[np.ndarray]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def test_outputs_have_the_order_of_the_network(tmp_path: Path) -> None:
    q = quantized(Several())
    q.export(tmp_path / "net.onnx")
    x = inputs(2, 20)
    one, (two, three) = q(x)
    for found, expected in zip(ran(tmp_path / "net.onnx", x), (one, two, three), strict=True):
        assert found.shape == tuple(expected.shape)
        assert np.abs(found - expected.numpy()).max() < 0.05


def test_a_network_of_one_size_gives_a_file_of_one_size(tmp_path: Path) -> None:
    q = quantized(Fixed())
    found = q.export(tmp_path / "net.onnx")
    assert 2 not in found.free
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim][2:] == [16, 16]
    assert all(one.psnr > 50 for one in found.comparisons)
    with pytest.raises(fxptq.CaptureError, match=r"fails on the example of shape \(1, 3, 24, 24\)"):
        q.export(tmp_path / "other.onnx", size=(24, 24))
    assert not (tmp_path / "other.onnx").exists()


def test_one_size_that_was_asked_for(tmp_path: Path) -> None:
    found = quantized(swinir()).export(tmp_path / "net.onnx", size=(24, 32))
    assert found.free == ()
    assert [one.shape for one in found.comparisons] == [(1, 3, 24, 32)]
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == [1, 3, 48, 64]
    assert not [node for node in graph.node if node.op_type == "Shape"]


@pytest.mark.parametrize(("bits", "kind"), [(2, UINT4), (3, UINT4), (4, UINT4), (5, UINT8), (8, UINT8)], ids=str)
def test_codes_are_those_of_the_checkpoint(bits: int, kind: int, tmp_path: Path) -> None:
    q = quantized(Own(), fxptq.Bits(bits, 8))
    found = q.export(tmp_path / "net.onnx")
    tensor = next(t for t in onnx.load(tmp_path / "net.onnx").graph.initializer if t.name == "body.weight.codes")
    weight = attribute(q.program.holder, "model.body.weight").detach()
    assert tensor.data_type == kind
    assert len(tensor.raw_data) == weight.numel() // (2 if kind == UINT4 else 1)
    codes = onnx.numpy_helper.to_array(tensor).astype(np.uint8)
    assert np.array_equal(codes, q.program.quantizers["body.weight"].encode(weight).numpy())
    assert found.onnx is not None
    assert found.onnx.wider == ({} if bits in (4, 8) else {bits: 1})


def test_every_operand_is_quantized_and_no_weight_is_stored_in_float(tmp_path: Path) -> None:
    q = quantized(swinir())
    q.export(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    weights = sum(q.program.weight_target(key) is not None for key in q.program.quantizers)
    assert counts["DequantizeLinear"] == len(q.program.quantizers)
    assert counts["QuantizeLinear"] == len(q.program.quantizers) - weights
    shapes = {
        tuple(q.program.weight_of(key).shape) for key in q.program.quantizers if q.program.weight_of(key) is not None
    }  # type: ignore[union-attr]
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type in (1, 10)]
    assert not [tensor.name for tensor in floats if tuple(tensor.dims) in shapes]
    assert {"fxptq.scale", "fxptq.bits", "fxptq.sizes"} <= {prop.key for prop in model.metadata_props}


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    q = quantized(swinir())
    for name in ("a.onnx", "b.onnx"):
        q.export(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_sites_with_a_zero_between_codes_are_named(tmp_path: Path) -> None:
    q = quantized(Own())
    found = q.export(tmp_path / "net.onnx")
    assert found.onnx is not None
    assert found.onnx.sites == 3
    assert set(found.onnx.in_float) == {"head", "body", "tail"}
    assert found.onnx.in_float["body"] == "weight: 0 lies between two codes"  # behind a ReLU, 0 is the first code
    with pytest.raises(InputError, match="--integers: runtimes compute 3 of 3 sites in float: head, body, tail"):
        q.export(tmp_path / "other.onnx", integers=True)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("make", "preset"),
    [(Own, "standard"), pytest.param(swinir, "standard", marks=pytest.mark.slow), (swinir, "quick")],
    ids=["own", "swinir", "quick"],
)
def test_grids_with_a_code_for_zero_need_no_node_beside_the_codes(make: type, preset: str, tmp_path: Path) -> None:
    recipe = settings('{ name = "minmax" }, { name = "biases" }') if preset == "standard" else None
    q = fxptq.quantize(make(), inputs(1), 4, inputs(), recipe, preset=preset, zero_on_grid=True)
    assert {quantizer.scheme for quantizer in q.program.quantizers.values()} == {"zero_on_grid"}
    found = q.export(tmp_path / "net.onnx", integers=True)
    assert found.onnx is not None
    assert found.onnx.in_float == {}
    for one in found.comparisons:
        assert one.psnr > 45, one
    model = onnx.load(tmp_path / "net.onnx")
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    read = [
        made.get(name) for node in model.graph.node if node.op_type in ("Conv", "MatMul") for name in node.input[:2]
    ]
    assert read.count("DequantizeLinear") == len(read)
    q.save(tmp_path / "net.safetensors")
    x = inputs(1, 24)
    assert torch.equal(fxptq.load(tmp_path / "net.safetensors", make())(x), q(x))


@pytest.mark.parametrize("opset", [20, 26, -1], ids=str)
def test_opsets_out_of_range(opset: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--opset {opset}: expected 21 to 25; 4-bit codes came with 21"):
        quantized(Own()).export(tmp_path / "net.onnx", opset=opset)


@pytest.mark.parametrize("opset", [21, 22, 23], ids=str)
def test_opsets_in_range(opset: int, tmp_path: Path) -> None:
    found = quantized(Own()).export(tmp_path / "net.onnx", opset=opset)
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == opset
    assert all(one.psnr > 50 for one in found.comparisons)


@pytest.mark.slow
def test_torch_export_of_the_integer_network(tmp_path: Path) -> None:
    q = quantized(swinir())
    found: Exported = q.export(tmp_path / "net.pt2")
    assert found.nbytes == (tmp_path / "net.pt2").stat().st_size
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    x = inputs(1)
    with torch.no_grad():
        assert torch.equal(loaded(x), q.to_integer(compile=False, compare=False)(x))


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with tiny.safetensors and mod.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_checkpoint(tmp_path)
    (tmp_path / "own_net.py").write_text(OWN)
    (tmp_path / "notes.onnx").write_text("notes")
    return tmp_path


def test_command(folder: Path) -> None:
    done = run("export", "tiny.safetensors", "--model", "mod:tiny", "-o", "new/net.onnx", "--json", "r.json")
    assert (done.status, done.err) == (0, "")
    assert "new/net.onnx: " in done.out
    assert "batch and height and width free" in done.out
    assert "ONNX Runtime beside the simulation" in done.out
    assert onnx.load("new/net.onnx").producer_name == "fxptq"
    again = run("export", "tiny.safetensors", "--model", "mod:tiny", "-o", "new/net.onnx", "--size", "16x16")
    assert (again.status, again.err) == (0, "")
    assert "no size free" in again.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "net.txt"], "--out net.txt: expected a name that ends in .onnx or .pt2"),
        (["-o", "notes.onnx"], "--out notes.onnx: exists and is not an ONNX file of fxptq"),
        (["-o", "mod.py/net.onnx"], "mod.py/net.onnx: cannot be written"),
        (["-o", "net.onnx", "--opset", "13"], "--opset 13: expected 21 to 25; 4-bit codes came with 21"),
        (["-o", "net.onnx", "--size", "17x16"], "--size 17x16: the network takes sizes in multiples of 8"),
        (["-o", "net.onnx", "--size", "16"], "--size '16': expected HEIGHTxWIDTH"),
        (["-o", "net.pt2", "--integers"], "--opset and --integers are for .onnx files"),
        (["-o", "net.onnx", "--integers"], "--integers: runtimes compute 29 of 29 sites in float: conv_first, "),
        (["-o", "tiny.safetensors"], "--out tiny.safetensors: would overwrite the file that CKPT names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unfit_options(args: list[str], message: str, folder: Path) -> None:
    done = run("export", "tiny.safetensors", "--model", "mod:tiny", *args)
    assert (done.status, done.out) == (2, "")
    assert done.line.startswith(message)
    assert not list(folder.glob("net.*"))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package(missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    done = run("export", "tiny.safetensors", "--model", "mod:tiny", "-o", "net.onnx")
    if missing == "onnx":
        assert done.status == 2
        assert done.line == 'ONNX files need the package onnx: pip install "fxptq[export]"'
    else:
        assert (done.status, done.err) == (0, "")
        assert 'not compared: ONNX Runtime is missing; pip install "fxptq[export]"' in done.out
