"""`fxptq doctor`: what this machine can run, and what is missing. Nothing is compiled, measured or downloaded."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fxptq._version import __version__
from fxptq.commands.machine import installed
from fxptq.errors import InputError
from fxptq.io.cache import cache_folder
from fxptq.kernels import build, compiler, shipped
from fxptq.kernels.compiler import UnavailableError
from fxptq.kernels.targets import processor_here, runnable_here

State = Literal["good", "missing", "bad"]

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "bench": (("openvino", "nncf", "onnx", "onnxruntime"), "compares with OpenVINO and ONNX Runtime in `fxptq bench`"),
    "zoo": (("spandrel", "torchvision"), "recognises community weights (`--weights FILE` without a recipe)"),
    "cuda": (("triton",), "integer kernels on NVIDIA GPUs"),
}
"""The extras of the package: what each installs, and what it is for."""


@dataclass(frozen=True)
class Check:
    """One line of the answer.

    Attributes:
        subject: what was looked at.
        state: good; missing for a thing that fxptq can do without; bad for a fault.
        found: what is there.
        advice: what to do; empty where nothing is to be done.
    """

    subject: str
    state: State
    found: str
    advice: str = ""


def run() -> list[Check]:
    """Looks at Python, torch, processor, kernels, compiler, GPU, cache and extras."""
    return [_python(), _torch(), _processor(), _kernels(), _compiler(), _cuda(), _cache(), *_extras()]


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The shape scripts rely on."""
    return {"checks": [vars(check) for check in checks]}


def _python() -> Check:
    return Check("fxptq", "good", f"{__version__} on Python {platform.python_version()}, {platform.system()}")


def _torch() -> Check:
    threads = torch.get_num_threads()
    return Check("PyTorch", "good", f"{torch.__version__}, {threads} thread{'s' * (threads > 1)}")


def _processor() -> Check:
    targets = runnable_here()
    cores = os.cpu_count() or 1
    name = f"{processor_here()}, {cores} core{'s' * (cores > 1)}"
    if targets:
        return Check("processor", "good", f"{name}: {targets[0].name}")
    return Check(
        "processor", "missing", name, "there are no kernels made for it; they run in general code, more slowly"
    )


def _kernels() -> Check:
    choice = os.environ.get(build.CHOICE, "")
    if choice:
        return Check("integer kernels", "good", f"chosen by {build.CHOICE}={choice}")
    carried = [target for target in runnable_here()[:1] if shipped.path_of(target).exists()]
    if carried:
        return Check("integer kernels", "good", f"{carried[0].name}, carried by this installation")
    try:
        done = build.compiled() is not None
    except (UnavailableError, InputError):
        return Check(
            "integer kernels",
            "bad",
            "none: integers run in plain torch, exact but slow",
            "install a C++ compiler, or a wheel with kernels (`make wheel` on a machine that has one)",
        )
    if done:
        return Check("integer kernels", "good", "compiled for this processor")
    return Check("integer kernels", "good", "not compiled yet; the first use compiles them, once, in about 20 s")


def _compiler() -> Check:
    try:
        path = compiler.find()
        lines = subprocess.run(  # noqa: S603  # the user's own compiler
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True, errors="replace"
        ).stdout.splitlines()
    except UnavailableError as error:
        return Check(
            "C++ compiler", "missing", str(error), "Debian: apt-get install g++; macOS: xcode-select --install"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check("C++ compiler", "bad", f"{path} does not run: {error}", "set CXX to another compiler")
    return Check("C++ compiler", "good", lines[0] if lines else path)


def _cuda() -> Check:
    if torch.cuda.is_available():
        return Check("NVIDIA GPU", "good", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    if torch.version.cuda is None:
        return Check(
            "NVIDIA GPU", "missing", "this PyTorch is built for the CPU", "install a build of PyTorch for CUDA"
        )
    return Check("NVIDIA GPU", "missing", f"none found by PyTorch for CUDA {torch.version.cuda}", "check the driver")


def _cache() -> Check:
    try:
        folder = cache_folder()
    except InputError as error:
        return Check("cache", "bad", str(error))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        return Check("cache", "good", str(folder))
    return Check("cache", "bad", f"{folder} cannot be written", "set XDG_CACHE_HOME to a folder of yours")


def _extras() -> list[Check]:
    checks = []
    for name, (packages, purpose) in EXTRAS.items():
        absent = [package for package in packages if not installed(package)]
        if not absent:
            checks.append(Check(f"extra {name}", "good", ", ".join(f"{p} {installed(p)}" for p in packages)))
        else:
            checks.append(
                Check(
                    f"extra {name}",
                    "missing",
                    f"without {', '.join(absent)}",
                    f"pip install 'fxptq[{name}]': {purpose}",
                )
            )
    return checks
