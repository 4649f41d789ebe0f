"""What the machine does to a command: kills it, gives it a full disk, folders that cannot be written, no compiler.

`make test-faults` kills each command FXPTQ_KILLS (100) times. Nothing is half written, nothing that is left stops the
next run, which gives the same bytes; everything else is one line for people.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killing import VICTIMS
from tests.tiny import Ran, environment, picture, spawn, write_checkpoint, write_recipe

KILLS = int(os.environ.get("FXPTQ_KILLS", "100"))
REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("command", VICTIMS)
def test_a_killed_command_leaves_nothing_half_done(command: str, tmp_path: Path) -> None:
    ran = subprocess.run(  # noqa: S603  # our own
        [sys.executable, "-m", "tests.faults.killing", command, str(KILLS), "0", str(tmp_path / "work")],
        cwd=REPOSITORY,
        env=environment({"PYTHONPATH": str(REPOSITORY)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr[-2000:]
    struck = int(ran.stderr.splitlines()[-1].split()[0])
    assert struck >= KILLS // 3, ran.stderr  # else the moments fell beside the work


def mounted(folder: Path, options: str) -> bool:
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if os.getuid() or mount is None:
        return False
    command = [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603  # a folder of ours


def unmount(folder: Path) -> None:
    subprocess.run([str(shutil.which("umount")), str(folder)], check=True)  # noqa: S603  # ours


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 8 kB."""
    folder = tmp_path / "disk"
    if not mounted(folder, "size=8k"):
        pytest.skip("a small disk can be mounted by root alone")
    yield folder
    unmount(folder)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nobody can write."""
    folder = tmp_path / "fixed"
    if mounted(folder, "ro,size=8k"):
        yield folder
        unmount(folder)
        return
    if os.getuid() == 0:
        pytest.skip("root can write everywhere, and no disk could be mounted")
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def commands(folder: Path, place: Path) -> dict[str, list[object]]:
    """Commands that write into a place, run in a folder."""
    recipe, weights = write_recipe(folder)
    checkpoint = write_checkpoint(folder)
    picture(folder / "in" / "a.png", 40)
    own = ["--model", "mod:tiny"]
    quantize = ["quantize", "--recipe", recipe, "--weights", weights, "--preset", "quick"]
    return {
        "checkpoint": [*quantize, "--out", place / "m.safetensors"],
        "json": [*quantize, "--out", "m.safetensors", "--json", place / "r.json"],
        "graphml": ["inspect", recipe, "--graphml", place / "g.graphml"],
        "pictures": ["upscale", checkpoint, "in", place / "out", *own],
        "picture": ["upscale", checkpoint, "in/a.png", place / "a.png", *own],
    }


KINDS = ("checkpoint", "json", "graphml", "pictures", "picture")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_one_line(kind: str, full: Path, tmp_path: Path) -> None:
    (full / "fill").write_bytes(bytes(4096))
    ran = spawn(commands(tmp_path, full)[kind], tmp_path)
    if kind == "json" and ran.status == 0:  # short enough for what is left
        return
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert "No space left on device" in ran.line
    assert [path.name for path in full.rglob("*") if path.is_file()] == ["fill"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_folder_is_one_line(kind: str, read_only: Path, tmp_path: Path) -> None:
    ran = spawn(commands(tmp_path, read_only)[kind], tmp_path)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert "cannot be written" in ran.line


def integers(tmp_path: Path, changes: dict[str, str]) -> Ran:
    write_checkpoint(tmp_path)
    picture(tmp_path / "a.png", 16)
    command = [sys.executable, "-m", "fxptq", "upscale", "tiny.safetensors", "a.png", "b.png", "--integer"]
    changed = {name: value for name, value in environment().items() if name not in {"XDG_CACHE_HOME", "CXX"}}
    changed |= {"PYTHONPATH": str(REPOSITORY), **changes}
    ran = subprocess.run(  # noqa: S603  # our own
        [*command, "--model", "mod:tiny"], cwd=tmp_path, env=changed, capture_output=True, text=True, check=False
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def reason_without_kernels(ran: Ran) -> str:
    """The line that says why there are no kernels; behind it stands at most what the machine makes of that."""
    reason, *measured = ran.err.splitlines()
    assert reason.startswith("integer kernels run in plain torch, exact but slow: ")
    assert len(measured) <= 1
    assert all(line.startswith("integers are ") and "torch kernels" in line for line in measured), measured
    return reason


def test_a_read_only_home_is_one_reason(read_only: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    ran = integers(tmp_path, {"HOME": str(read_only)})
    assert (ran.status, ran.out) == (0, "b.png\n"), ran.err
    reason = reason_without_kernels(ran)
    assert "Read-only file system" in reason or "Permission denied" in reason


def test_no_compiler_is_one_reason(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    ran = integers(tmp_path, {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert (ran.status, ran.out) == (0, "b.png\n"), ran.err
    assert "no C++ compiler found" in reason_without_kernels(ran)


def test_many_processes_that_need_the_kernels_at_once_build_them_once(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    write_recipe(tmp_path)
    write_checkpoint(tmp_path)
    picture(tmp_path / "a.png")
    own = environment({"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    command = [
        sys.executable,
        "-m",
        "fxptq",
        "upscale",
        "--integer",
        "--model",
        "mod:tiny",
        "tiny.safetensors",
        "a.png",
    ]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([*command, f"{number}.png"], cwd=tmp_path, env=own, stdout=pipe, stderr=pipe, text=True)  # noqa: S603  # our own
        for number in range(6)
    ]
    ran = [(*process.communicate(timeout=600), process.returncode) for process in processes]
    assert all((out, status) == (f"{number}.png\n", 0) for number, (out, _, status) in enumerate(ran)), ran
    assert not any("plain torch" in err for _, err, _ in ran), ran
    assert len({(tmp_path / f"{number}.png").read_bytes() for number in range(6)}) == 1
    built = [file.name for file in (tmp_path / "cache").rglob("fxptq_kernels*")]
    assert sorted(built) == ["fxptq_kernels.sha256", "fxptq_kernels.so"]
