"""Where the kernels come from, and what happens and is said where they cannot be built."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fxptq.kernels import build, trial
from fxptq.kernels.backend import Installed
from tests.tiny import write_checkpoint, write_recipe

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a compiler, with an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CXX", build.CHOICE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def compiler(folder: Path, script: str) -> Path:
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # This very interpreter, on the project's own code.
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


def fresh() -> Installed:
    """The backend as a new process would find it."""
    return build.backend.__wrapped__()


def test_without_a_compiler_plain_torch_runs_and_says_so(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fxptq"):
        found = fresh()
    assert (found.name, found.native) == ("torch", False)
    assert found.reason == "no C++ compiler found (set CXX, or install g++)"
    assert "integer kernels run in plain torch, exact but slow: no C++ compiler found" in caplog.text
    assert not (nowhere / "cache").exists()


def test_a_processor_the_compiler_does_not_know(nowhere: Path) -> None:
    compiler(nowhere, "echo \"cc1plus: error: bad value 'native' for '-march='\" >&2; exit 1")
    assert fresh().reason.endswith("c++ failed: cc1plus: error: bad value 'native' for '-march='")


WRITE = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo broken > "$2"; shift; done'


def test_a_build_that_breaks_off_leaves_nothing_behind(nowhere: Path) -> None:
    compiler(nowhere, f'case "$*" in *-dM*) exit 0;; esac; {WRITE}; echo "fatal error: no room" >&2; exit 1')
    assert "failed: fatal error: no room" in fresh().reason
    assert not [path for path in (nowhere / "cache").rglob("*") if path.is_file()]


def test_a_library_that_cannot_be_loaded(nowhere: Path) -> None:
    compiler(nowhere, f"{WRITE}; exit 0")
    found = fresh()
    assert not found.native
    assert "fxptq_kernels.so" in found.reason


# A compiler whose library is a text; it notes each time it links one.
COUNT = 'case "$*" in *-dM*) exit 0;; *-shared*) echo build >> "$0.log";; esac'


@pytest.fixture
def counted(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose compiler counts what it builds, and where every library passes its trial."""
    compiler(nowhere, f"{COUNT}; {WRITE}; exit 0")
    monkeypatch.setattr(build, "try_out", lambda *_: None)
    return nowhere / "c++.log"


@pytest.mark.parametrize("damage", ["cut off", "foreign", "empty", "without a record", "none"])
def test_a_library_that_is_not_what_was_built_is_built_again(damage: str, counted: Path) -> None:
    path = build.library()
    whole = path.read_bytes()
    if damage == "without a record":
        path.with_suffix(".sha256").unlink()
    elif damage != "none":
        path.write_bytes({"cut off": whole[:3], "foreign": b"\x7fELF" + bytes(99), "empty": b""}[damage])
    assert build.library() == path
    assert path.read_bytes() == whole
    assert len(counted.read_text().splitlines()) == (1 if damage == "none" else 2)
    assert sorted(file.name for file in path.parent.iterdir()) == ["fxptq_kernels.sha256", "fxptq_kernels.so"]


def test_of_many_that_need_the_library_one_builds_it(counted: Path) -> None:
    compiler(counted.parent, f"PATH=/usr/bin:/bin; {COUNT}; sleep 0.3; {WRITE}; exit 0")
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: build.library(), range(6)))
    assert len(set(paths)) == 1
    assert len(counted.read_text().splitlines()) == 1


@pytest.mark.parametrize("death", ["SIGBUS", "SIGSEGV", "SIGILL"])
def test_a_library_that_kills_whoever_loads_it_is_not_loaded_here(
    death: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(nowhere, f"{WRITE}; exit 0")
    monkeypatch.setattr(trial, "PROGRAM", ("-c", f"import os, signal; os.kill(os.getpid(), signal.{death})"))
    found = fresh()
    assert not found.native
    assert "fxptq_kernels.so: what was built cannot be loaded" in found.reason
    assert not [path for path in (nowhere / "cache").rglob("*") if path.is_file()]


def test_what_a_killed_build_left_stops_nobody(counted: Path) -> None:
    path = build.library()
    path.unlink()
    for name in ("fxptq_kernels.part", "fxptq_kernels.so.lock"):
        (path.parent / name).write_bytes(b"half")
    build.library()
    assert sorted(file.name for file in path.parent.iterdir()) == ["fxptq_kernels.sha256", "fxptq_kernels.so"]


def test_the_environment_chooses_the_processor(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = counted.with_name("options")
    compiler(counted.parent, f'{COUNT}; echo "$*" >> {log}; {WRITE}; exit 0')
    fresh()
    assert "-march=native" in log.read_text()
    log.unlink()
    monkeypatch.setenv(build.CHOICE, "-mavx2 -mfma")
    fresh()
    assert " -mavx2 -mfma " in log.read_text()
    assert "-march=native" not in log.read_text()


def test_a_relative_cache_is_ignored(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(counted.parent)
    monkeypatch.setenv("HOME", str(counted.parent / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert build.library().is_relative_to(counted.parent / "home" / ".cache" / "fxptq" / "kernels")
    assert not Path("cache").exists()


def test_nobody_at_home(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(nowhere, "exit 0")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert fresh().reason == "this user has no home folder to keep a cache in; set XDG_CACHE_HOME to a folder"


@pytest.mark.slow
def test_the_true_library_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not build.backend().native:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = build.library()
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    program = "from fxptq.kernels import build; print(build.backend().name)"
    ran = run([sys.executable, "-c", program], REPOSITORY, {**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    assert (ran.returncode, ran.stdout.split()) == (0, [build.backend().name]), ran.stderr


def test_a_cache_that_cannot_be_written(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(nowhere, "exit 0")
    (nowhere / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "file"))
    assert str(nowhere / "file") in fresh().reason


def test_the_command_line_says_so_once_and_goes_on(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    write_checkpoint(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
    program = "import sys; from fxptq.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "evaluate", "tiny.safetensors", "--model", "mod:tiny"]
    ran = [run([*command, *more], tmp_path, environment) for more in ([], ["--integer"])]
    assert [run.returncode for run in ran] == [0, 0]
    assert "plain torch" not in ran[0].stderr
    assert ran[1].stderr.count("integer kernels run in plain torch, exact but slow: no C++ compiler found") == 1
    assert ran[1].stdout == ran[0].stdout


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [("x86-64-v3", "avx2"), ("x86-64", "generic")])
def test_other_processors(target: str, name: str) -> None:
    """The same sources for processors without AVX-512, which this one can run as well: equal to plain torch."""
    if not build.backend().native or "amd64" not in os.uname().machine.replace("x86_64", "amd64"):
        pytest.skip("needs a C++ compiler for x86")
    command = [sys.executable, "-m", "tests.kernels.portable", target]
    ran = run(command, REPOSITORY, dict(os.environ))
    assert (ran.returncode, ran.stdout.split()) == (0, [name, "equal"]), ran.stderr
