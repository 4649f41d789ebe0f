"""`fxptq evaluate`: scores as JSON, and damaged or foreign checkpoints in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.file import Checkpoint
from fxptq.checkpoint.metadata import FORMAT_VERSION
from tests.tiny import environment, picture, run, spawn, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: tiny.safetensors, mod.py, and a set of two pictures."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path)
    for name in ("a[b]", "c"):
        picture(tmp_path / "set" / "HR" / f"{name}.png", 33)  # a row and a column too many
        picture(tmp_path / "set" / "LR_bicubic" / "X2" / f"{name}x2.png", 16)
    return tmp_path


def test_json_has_the_shape_scripts_rely_on(folder: Path) -> None:
    ran = run("evaluate", "tiny.safetensors", "--model", "mod:tiny", "--data", "Mine=set", "--json", "r.json")
    assert (ran.status, ran.err) == (0, "")
    result = json.loads(Path("r.json").read_text())
    assert list(result) == ["Mine"]
    assert {"psnr_y", "ssim_y", "images"} <= set(result["Mine"])
    images = result["Mine"]["images"]
    assert list(images) == ["a[b]", "c"]
    for key in ("psnr_y", "ssim_y"):
        mean = (images["a[b]"][key] + images["c"][key]) / 2
        assert result["Mine"][key] == pytest.approx(mean)
    shown = [line for line in ran.out.splitlines() if "a[b]" in line]
    assert f"{images['a[b]']['psnr_y']:.2f}" in shown[0]


def test_without_data_samples_are_scored(folder: Path) -> None:
    ran = run("evaluate", "tiny.safetensors", "--model", "mod:tiny", "--json", "r.json")
    assert ran.status == 0
    result = json.loads(Path("r.json").read_text())
    assert list(result) == ["samples"]
    assert len(result["samples"]["images"]) == 4


def test_processes_give_the_scores_of_one(folder: Path) -> None:
    """Processes of its own, and those of torchrun, print the same bytes; the sets have pictures of several sizes."""
    picture(folder / "set" / "HR" / "b.png", 64)
    picture(folder / "set" / "LR_bicubic" / "X2" / "bx2.png", 32)
    command = ["evaluate", "tiny.safetensors", "--model", "mod:tiny", "--data", "Mine=set", "--data", "Other=set"]
    one = spawn([*command, "--json", "1.json"], folder)
    several = spawn([*command, "--json", "2.json", "--jobs", 3], folder)
    assert (one.status, several.status) == (0, 0), several.err
    assert several.out == one.out
    assert (folder / "2.json").read_bytes() == (folder / "1.json").read_bytes()
    ran = subprocess.run(  # noqa: S603  # our own
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "fxptq", *command, "--json", "3.json", "--device", "cpu"),
        ],
        cwd=folder,
        env=environment({"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == one.out
    assert (folder / "3.json").read_bytes() == (folder / "1.json").read_bytes()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_picture_that_cannot_be_read_is_named_once(folder: Path, jobs: int) -> None:
    (folder / "set" / "LR_bicubic" / "X2" / "cx2.png").write_bytes(b"no picture")
    ran = spawn(["evaluate", "tiny.safetensors", "--model", "mod:tiny", "--data", "M=set", "--jobs", jobs], folder)
    assert ran.status == 2
    assert "cx2.png" in ran.line


def test_a_number_of_processes_below_one_is_refused(folder: Path) -> None:
    ran = run("evaluate", "tiny.safetensors", "--model", "mod:tiny", "--jobs", 0)
    assert (ran.status, ran.line) == (2, "--jobs 0: expected the number of processes, 1 or more")


def test_infinite_psnr_is_null(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxptq.evaluate.score.psnr", lambda *_: float("inf"))
    assert run("evaluate", "tiny.safetensors", "--model", "mod:tiny", "--data", "M=set", "--json", "r.json").status == 0
    assert json.loads(Path("r.json").read_text(), parse_constant=pytest.fail)["M"]["psnr"] is None


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def tampered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def newer(path: Path) -> None:
    content = checkpoints.read(path)
    meta = content.meta.model_copy(update={"format_version": 99})
    checkpoints.write(path, Checkpoint(meta, content.codes, content.bounds, content.floats))


def text(path: Path) -> None:
    path.write_text("not a checkpoint at all")


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("command", [["evaluate"], ["inspect"], ["upscale", "set/HR", "out"]], ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "truncated, damaged or no safetensors file"),
        (tampered, "damaged: its content does not match its SHA-256"),
        (newer, f"format 99 is newer than the {FORMAT_VERSION} this fxptq reads: update fxptq"),
        (text, "truncated, damaged or no safetensors file"),
        (missing, "cannot be read: No such file or directory"),
        (a_folder, "cannot be read: Is a directory"),
    ],
    ids=["truncated", "tampered", "newer", "text", "missing", "folder"],
)
def test_unfit_checkpoint(command: list[str], damage: Callable[[Path], None], message: str, folder: Path) -> None:
    damage(folder / "tiny.safetensors")
    ran = run(command[0], "tiny.safetensors", *command[1:], "--model", "mod:tiny")
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(f"tiny.safetensors: {message}")


def test_network_of_another_architecture(folder: Path) -> None:
    (folder / "another.py").write_text("from torch import nn\ndef other(): return nn.Conv2d(3, 3, 3)\n")
    ran = run("evaluate", "tiny.safetensors", "--model", "another:other")
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(
        "tiny.safetensors: another architecture: the checkpoint lacks bias, weight; "
        "this network lacks conv_after_body.bias, conv_after_body.weight, conv_first.bias and "
    )


def test_unfit_sets(folder: Path) -> None:
    for data, message in {
        "Set5": "'Set5': expected NAME=DIR",
        "M=nowhere": "M: nowhere has no folder HR",
        "M=set/HR": "M: set/HR has no folder HR",
    }.items():
        ran = run("evaluate", "tiny.safetensors", "--model", "mod:tiny", "--data", data)
        assert ran.status == 2
        assert ran.line.startswith(message)


def test_broken_picture_in_a_set(folder: Path) -> None:
    (folder / "set" / "LR_bicubic" / "X2" / "cx2.png").write_text("not a picture")
    ran = run("evaluate", "tiny.safetensors", "--model", "mod:tiny", "--data", "M=set")
    assert (ran.status, ran.out) == (2, "")
    assert "cx2.png: not a picture in a format that can be read" in ran.line
