"""examples/: every script runs in a process of its own, as a reader runs it, and prints figures that make sense."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import environment

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def figures(pattern: str, text: str) -> list[float]:
    """The number in each match of a pattern."""
    return [float(number.replace(",", "")) for number in re.findall(pattern, text, re.MULTILINE)]


def check_super_resolution(printed: str, folder: Path) -> None:
    (stored,), (plain,) = figures(r": ([\d,]+) bytes", printed), figures(r"in place of ([\d,]+)", printed)
    assert stored == (folder / "small_w4a4.safetensors").stat().st_size
    assert stored < plain / 4
    assert figures(r"([\d.]+) dB$", printed)[0] > 25
    assert "6 sites quantized, 0 left in float" in printed


def check_own_pass(printed: str, folder: Path) -> None:
    moves = figures(r"by ([\d.]+) of a step$", printed)
    assert f"{len(moves)} grids moved" in printed
    assert len(moves) == 6
    assert 0 < max(moves) <= 0.5
    assert figures(r"([\d.]+) dB$", printed)[0] > 25


def check_own_recipe(printed: str, folder: Path) -> None:
    noisy, plain, quantized = figures(r"([\d.]+) dB$", printed)
    assert noisy + 3 < quantized < plain + 0.1
    assert "the task is noise sigma 25" in printed
    assert printed.count("W4A6") == 6
    assert printed.count("W4A4") == 8


def check_integers(printed: str, folder: Path) -> None:
    means = figures(r"([\d.]+) levels of 255 on average", printed)
    assert len(means) == 2
    assert max(means) < 0.05
    assert "simulated in float" not in printed


def check_mixed_bits(printed: str, folder: Path) -> None:
    *_, low, mixed, high = figures(r"([\d.]+) dB", printed)
    assert low < mixed < high
    sizes = figures(r"([\d,]+) bytes", printed)
    assert sizes == sorted(set(sizes))
    assert printed.count("W6A6") == 5


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "super_resolution.py": check_super_resolution,
    "own_pass.py": check_own_pass,
    "own_recipe.py": check_own_recipe,
    "integers.py": check_integers,
    "mixed_bits.py": check_mixed_bits,
}


@pytest.mark.parametrize("script", CHECKS)
def test_example_runs(script: str, tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, FOLDER / script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    CHECKS[script](done.stdout, tmp_path)


def test_every_script_is_run_and_listed() -> None:
    scripts = {path.name for path in FOLDER.glob("*.py")}
    listed = re.findall(r"\]\((\w+\.py)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert scripts == set(CHECKS) == set(listed)


@pytest.mark.parametrize("script", CHECKS)
def test_an_example_is_short(script: str) -> None:
    assert len((FOLDER / script).read_text(encoding="utf-8").splitlines()) < 60
