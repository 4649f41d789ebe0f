"""The CUDA kernels compiled to machine code, which needs no GPU: what Triton's interpreter lets pass, fails here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from fxptq.graph.geometry import Geometry
from fxptq.kernels import panels
from fxptq.kernels.cuda import attention, convolution, elementwise, gemm, matmul
from fxptq.kernels.layer import Layer
from fxptq.kernels.layouts import ROWS
from fxptq.quant.grid import Grid
from tests.kernels.helpers import SUMS, epilogue, next_grid

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter has nothing to compile for"
)


class Driver:
    """A GPU as far as Triton's compiler asks about it."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0 * device


@pytest.fixture(params=[pytest.param(80, id="sm_80", marks=pytest.mark.slow), pytest.param(90, id="sm_90")])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The PTX of every kernel that is launched meanwhile, in every configuration; none of them runs."""
    found: list[str] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert kernel.asm["cubin"]
        found.append(kernel.asm["ptx"])

    def every_configuration(self: Any, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            self.fn.run(*args, **kwargs | config.all_kwargs())

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(Autotuner, "run", every_configuration)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(request.param))
    return found


def layer(*shape: int) -> Layer:
    """A layer with everything in its epilogue."""
    columns, taps = shape[0], 9 if len(shape) == 4 else 0
    return Layer(
        torch.zeros(shape, dtype=torch.int8),
        *torch.ones(3, columns).unbind(),
        taps=torch.ones(taps, columns) if taps else None,
    )


def assert_multiplies_bytes(kernels: list[str]) -> None:
    assert kernels
    for ptx in kernels:
        assert re.search(r"mma\S*\.s32\.s8\.s8", ptx), "no products of bytes on the matrix units"
        assert not re.search(r"mma\S*f32", ptx)


CASES = [(2, 4, {}), (4, 4, {"activation": 1}), (8, 8, {"activation": 2, "residual": torch.zeros(2, 60, 8, 8)})]


@pytest.mark.parametrize(("bits", "a_bits", "changes"), CASES, ids=["2-bit", "4-bit", "8-bit"])
def test_convolution(compiled: list[str], bits: int, a_bits: int, changes: dict[str, Any]) -> None:
    served = ROWS.convolution(layer(60, 60, 3, 3), bits, Grid(1.0, 0.0, a_bits), Geometry(padding=(1, 1)))
    levels = panels.pad_columns(torch.full((60,), 15.0)) if bits < 8 else None
    arguments = (
        epilogue(**changes, levels=levels)
        | next_grid(Grid(1.0, 0.0, a_bits), 60)
        | served.layer.epilogue()
        | served.arguments
    )
    a = torch.zeros(2, 60, 8, 8, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    convolution.rows_conv2d(a, columns=60, **arguments)
    assert_multiplies_bytes(compiled)
    assert not any("ld.global.b8" in ptx for ptx in compiled), "codes are read byte by byte"


def test_convolution_of_an_image_and_pixel_shuffle(compiled: list[str]) -> None:
    served = ROWS.convolution(layer(48, 3, 3, 3), 8, Grid(1.0, 0.0, 8), Geometry(padding=(1, 1)))
    arguments = epilogue() | served.layer.epilogue() | served.arguments | {"shuffle": 2}
    convolution.rows_conv2d(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), columns=48, **arguments)
    assert_multiplies_bytes(compiled)


@pytest.mark.parametrize(("bits", "a_bits"), [(2, 4), (4, 4), (8, 8)], ids=["2-bit", "4-bit", "8-bit"])
def test_linear(compiled: list[str], bits: int, a_bits: int) -> None:
    served = ROWS.linear(layer(180, 60), bits, Grid(1.0, 0.0, a_bits))
    arguments = epilogue(levels=panels.pad_columns(torch.ones(180))) | served.layer.epilogue() | served.arguments
    gemm.rows_linear(torch.zeros(2, 64, 60, dtype=torch.uint8), columns=180, **arguments)
    assert_multiplies_bytes(compiled)


def test_matmul(compiled: list[str]) -> None:
    a, b = torch.zeros(2, 48, 320, dtype=torch.uint8), torch.zeros(2, 40, 320, dtype=torch.uint8).transpose(1, 2)
    matmul.matmul(a, b, bits=4, **SUMS, shares=True)
    assert_multiplies_bytes(compiled)


@pytest.mark.parametrize("keys", [64, 300], ids=["one-block", "blocks"])
@pytest.mark.parametrize(("bits", "shares"), [(4, True), (8, False)], ids=["4-bit-shares", "8-bit"])
def test_attention(compiled: list[str], keys: int, bits: int, shares: bool) -> None:
    q, k, v = (torch.zeros(4, keys, 6, 10, dtype=torch.uint8).transpose(1, 2) for _ in range(3))
    terms = torch.zeros(6, keys, -(-keys // 16) * 16)
    attention.attention(
        q, k, v, bias=terms, mask=terms[:2], key_bits=bits, value_bits=bits,
        logit=torch.ones(2, 6, 1, dtype=torch.float64), prob=[1.0, 0.0, 2.0**bits - 1],
        out=torch.ones(5, 6, 10, dtype=torch.float64), levels=15, shares=shares,
    )  # fmt: skip
    assert_multiplies_bytes(compiled)


def test_elementwise(compiled: list[str]) -> None:
    elementwise.quantize(torch.zeros(5000), lower=0.1, step=0.1, levels=15)
    assert "div.rn.f32" in compiled[-1], "codes would differ from the simulation's"
    x = torch.zeros(500, 60)
    elementwise.layer_norm_codes(x, scale=torch.ones(64), offset=torch.ones(64), eps=1e-5, levels=15)
    assert len(compiled) == 2
