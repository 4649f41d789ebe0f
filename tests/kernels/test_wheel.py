"""The wheel that carries its kernels: built, installed where there is no compiler, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fxptq.kernels.build import CHOICE
from fxptq.kernels.targets import runnable_here
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
FOLDERS = {"fxptq": "fxptq", "models": "fxptq/models", "recipes": "fxptq/recipes"}
"""Folders of the tree, and where they are installed."""

PROGRAM = """
import sys, numpy, torch, fxptq, mod
x = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
integer = fxptq.load("tiny.safetensors", mod.tiny()).to_integer(compile=False, compare=False)
with torch.no_grad():
    numpy.save(sys.argv[1], integer(x).numpy())
print(integer.lowering.backend.name)
print(fxptq.__file__)
"""


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # This very interpreter, on the project's own code.
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make wheel`, on a copy of the tree."""
    if not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))) or not runnable_here():
        pytest.skip("needs a C++ compiler, and a processor that a wheel carries kernels for")
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    ran = run(command, source, {**os.environ, "FXPTQ_WHEEL_KERNELS": "1"})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = (source / "dist").iterdir()
    return path


@dataclass(frozen=True)
class Installation:
    """The wheel in an environment of its own, whose torch is the one of this environment.

    Attributes:
        python: its interpreter.
        folder: holds a checkpoint and the code of its network.
        kernels: the installed libraries.
    """

    python: Path
    folder: Path
    kernels: Path

    def integers(self, name: str, **changes: str) -> tuple[subprocess.CompletedProcess[str], np.ndarray]:
        """Runs a network on integers, without a compiler unless `changes` bring one; what it says, and its output."""
        (self.folder / "empty").mkdir(exist_ok=True)
        environment = {"PATH": str(self.folder / "empty"), "XDG_CACHE_HOME": str(self.folder / "cache")} | changes
        ran = run([str(self.python), "-c", PROGRAM, f"{name}.npy"], self.folder, environment)
        assert ran.returncode == 0, ran.stderr
        assert Path(ran.stdout.splitlines()[1]).is_relative_to(self.python.parents[1])
        return ran, np.load(self.folder / f"{name}.npy")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installed")
    write_checkpoint(folder)
    python = folder / "venv" / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    for command in (["-m", "venv", "--without-pip", "venv"], install):
        ran = run([sys.executable, *command], folder, dict(os.environ))
        assert ran.returncode == 0, ran.stdout + ran.stderr
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Behind its own packages, those that torch lies among.
    (packages / "torch_of_the_tests.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return Installation(python, folder, packages / "fxptq" / "kernels" / "lib")


def sources() -> Iterator[str]:
    """Every file of the tree that belongs to the package, by its installed path."""
    for folder, place in FOLDERS.items():
        for path in (REPOSITORY / folder).rglob("*"):
            inside = path.relative_to(REPOSITORY / folder)
            if path.is_file() and path.suffix != ".pyc" and inside.parts[:2] != ("kernels", "lib"):
                yield f"{place}/{inside.as_posix()}"


def test_the_wheel_holds_the_whole_tree_and_a_library_for_each_target(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        libraries = {name: file.read(name) for name in names if name.endswith(".so")}
    kernels = {f"fxptq/kernels/lib/{target.name}" for target in runnable_here()}
    assert kernels <= {name.removesuffix(".so") for name in libraries}
    records = {name.removesuffix(".so") + ".sha256" for name in libraries}
    assert names == {*sources(), *libraries, *records}
    assert "-py3-none-" in wheel.name
    if sys.platform == "linux":
        assert "-py3-none-manylinux_2_" in wheel.name
    for content in libraries.values():
        assert str(wheel.parents[1]).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content


@pytest.mark.parametrize("chosen", ["the best", "avx2"])
def test_integers_without_a_compiler_are_those_of_the_tree(chosen: str, installed: Installation) -> None:
    names = [target.name for target in runnable_here()]
    name = names[0] if chosen == "the best" else chosen
    if name not in names:
        pytest.skip(f"this processor lacks {name}")
    ran, output = installed.integers(name, **({} if chosen == "the best" else {CHOICE: name}))
    assert ran.stdout.splitlines()[0] == name
    assert ran.stderr == ""
    cached = [path for path in (installed.folder / "cache").rglob("*") if path.is_file()]
    assert cached
    assert {path.parent.name for path in cached} == {"tried"}
    # The tree has no library: it compiles one with the flags of the same target.
    environment = {**os.environ, CHOICE: name, "PYTHONPATH": str(REPOSITORY)}
    expected = run([sys.executable, "-c", PROGRAM, "tree.npy"], installed.folder, environment)
    assert expected.stdout.splitlines()[0] == name, expected.stderr
    assert np.array_equal(output, np.load(installed.folder / "tree.npy"))


def test_a_damaged_library_is_not_loaded(installed: Installation) -> None:
    target = runnable_here()[0]
    path = installed.kernels / f"{target.name}.so"
    data = path.read_bytes()
    try:
        path.write_bytes(data[: len(data) // 2])
        plain, _ = installed.integers("plain")
        compiled, _ = installed.integers("compiled", PATH=os.environ["PATH"])
    finally:
        path.write_bytes(data)
    assert plain.stdout.splitlines()[0] == "torch"
    assert f"{path} is damaged" in plain.stderr
    assert "no C++ compiler found" in plain.stderr
    assert compiled.stdout.splitlines()[0] == target.name
    assert f"{path} is damaged" in compiled.stderr
    assert len(compiled.stderr.splitlines()) == 1
