"""Thousands of files that were tampered with: each ends in seconds, in bounded memory, with a result or one line.

`make test-fuzz` tries FXPTQ_FUZZ (10,000) cases of each kind, from the seed FXPTQ_FUZZ_FIRST (0) on. A case that goes
wrong is printed with its seed; `python -m tests.fuzz.worker KIND SEED 1 FOLDER` runs it again. Seeds of faults stand
in SEEDS, and run with the other tests; what was found is also tested beside the code that it was found in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import worker
from tests.tiny import environment

COUNT = int(os.environ.get("FXPTQ_FUZZ", "10000"))
FIRST = int(os.environ.get("FXPTQ_FUZZ_FIRST", "0"))
SLICE = 500  # cases a process: what one does to the memory must not hide what the next does
REPOSITORY = Path(__file__).parents[2]

SEEDS = {
    "checkpoints": (436, 892),  # a quantizer without a name; two tensors through one quantizer
    "recipes": (1, 2594, 4148, 5101),  # sizes beyond the memory and beyond int64
    "pictures": (0, 1, 2, 3),
    "weights": (126, 455, 1940, 7601),  # a mapping that is no state dict; a magnitude of another size than its weight
}


def troubles(kind: str, first: int, count: int, folder: Path) -> list[str]:
    """What went wrong with the cases of a range, by seed."""
    found: list[str] = []
    end = first + count
    while first < end:
        length = min(SLICE, end - first)
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.fuzz.worker",
            kind,
            str(first),
            str(length),
            str(folder),
        ]
        ran = subprocess.run(  # noqa: S603  # our own
            command,
            cwd=REPOSITORY,
            env=environment({"PYTHONPATH": str(REPOSITORY)}),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        for line in ran.stdout.splitlines():
            seed, problem = json.loads(line)
            found.append(f"{kind} {seed}: {problem}")
        last = (folder / "seed").read_text() if (folder / "seed").exists() else f"none ({ran.stderr[-300:]})"
        if last == "done":
            first += length
        else:
            found.append(f"{kind} {last}: the process died with status {ran.returncode}: {ran.stderr[-300:]}")
            first = int(last) + 1 if last.isdecimal() else end
        (folder / "seed").unlink(missing_ok=True)
    return found


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", worker.KINDS)
def test_every_case_ends_well(kind: str, tmp_path: Path) -> None:
    found = troubles(kind, FIRST, COUNT, tmp_path)
    assert not found, "\n".join([f"{len(found)} of {COUNT}:", *found])


@pytest.mark.parametrize("kind", worker.KINDS)
def test_what_went_wrong_once(kind: str, tmp_path: Path) -> None:
    assert not [problem for seed in SEEDS[kind] for problem in troubles(kind, seed, 1, tmp_path)]


def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.KINDS, "recipes", lambda *_: {}["fault"])
    assert "KeyError" in worker.wrong("recipes", 3, tmp_path)
    monkeypatch.setitem(worker.KINDS, "recipes", lambda *_: worker.watch("os.system", ()))
    assert "ran something" in worker.wrong("recipes", 3, tmp_path)
