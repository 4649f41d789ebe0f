"""What is said where the CUDA kernels cannot run, and the tests of the kernels themselves in Triton's interpreter."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fxptq.kernels.backend import Installed, backend_for
from fxptq.kernels.cuda import register

HERE = Path(__file__).parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine that seems to have a GPU, without the modules of kernels imported yet; put back afterwards."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    for name in list(sys.modules):
        if name.startswith("fxptq.kernels.cuda.") and name != register.__name__:
            monkeypatch.delitem(sys.modules, name)
    register.backend.cache_clear()
    yield monkeypatch
    register.backend.cache_clear()


def failing(error: Exception, original: Any = builtins.__import__) -> Any:
    """An `__import__` that fails for triton."""

    def load(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name == "triton" or name.startswith("triton."):
            raise error
        return original(name, *args, **kwargs)

    return load


def test_pytorch_without_cuda(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", None)
    assert register.obstacle() == "this PyTorch was built without CUDA"


def test_no_device(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert register.obstacle() == "PyTorch finds no CUDA device"


def test_a_device_too_old(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert register.obstacle() == "Test GPU has compute capability 7.5, and the kernels need 8.0"


def test_no_triton(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(builtins, "__import__", failing(ModuleNotFoundError("No module named 'triton'", name="triton")))
    assert register.obstacle() == "Triton is not installed (pip install 'fxptq[cuda]')"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ImportError("libtriton.so: undefined symbol: foo\nmore"), id="import-error"),
        pytest.param(RuntimeError("libtriton.so: undefined symbol: foo"), id="another-error"),
        pytest.param(ModuleNotFoundError("libtriton.so: undefined symbol: foo", name="other"), id="something-it-needs"),
    ],
)
def test_broken_triton(gpu: pytest.MonkeyPatch, error: Exception) -> None:
    gpu.setattr(builtins, "__import__", failing(error))
    assert register.obstacle() == "Triton cannot be imported: libtriton.so: undefined symbol: foo"


def test_plain_torch_is_announced_once(gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    gpu.setattr(builtins, "__import__", failing(RuntimeError("broken")))
    with caplog.at_level(logging.WARNING, "fxptq"):
        found = [backend_for(torch.device("cuda")).install() for _ in range(2)]
    assert found == [Installed("torch", "Triton cannot be imported: broken")] * 2
    assert not found[0].native
    assert caplog.messages == [
        "integer kernels run in plain torch on the GPU, exact but slow: Triton cannot be imported: broken"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to measure")
def test_the_benchmark_says_what_is_missing() -> None:
    done = subprocess.run(  # of this repository
        [sys.executable, "-m", "benchmarks.speed_cuda", "--quick", "model.safetensors"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"benchmarks.speed_cuda: {register.obstacle()}; there is nothing to measure\n"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_triton_s_interpreter() -> None:
    """All of tests/kernels/cuda, in a process whose Triton interprets; run it there yourself to see each test."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(  # noqa: S603  # of this repository
        [sys.executable, "-m", "pytest", str(HERE / "cuda"), *options],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "100%" in done.stdout
