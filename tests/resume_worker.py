"""Runs that are killed: `python -m tests.resume_worker` reads orders from standard input, one JSON object a line.

Each order is carried out in a forked process, so that a run can be killed at any moment by SIGKILL and the next one
starts at once. The answer is one line: the signal or exit status that ended the process, and the names of its passes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fxptq
from fxptq import resume
from fxptq.io import state_file
from fxptq.passes import base
from tests.tiny import edsr, inputs, settings

DQC = "steps = 6, batch = 2, patch = 8, holdout_crops = 2, eval_every = 2, lr = 0.1"
PASSES = f'{{ name = "dobi", k = 20 }}, {{ name = "gptq" }}, {{ name = "dqc", {DQC} }}'
WRITES = ("observe", "dobi", "moments", "gptq", *(f"step {i}" for i in range(1, 6)), "dqc")
"""The states that a whole run writes when each step of the distillation is saved."""


def quantize(folder: Path | None, out: Path, passes: str = PASSES) -> None:
    q = fxptq.quantize(
        edsr(), inputs(1), 4, inputs(3), settings(passes), scale=2, value_range=1.0, seed=1, resume=folder
    )
    q.save(out)


def kill_at(number: int, moment: str) -> None:
    """Kills this process when the state of that number, from 1, is written: before, within or after that."""
    plain, pieces_of = resume.write_state, state_file._pieces
    calls = 0

    def write(path: Path, state: state_file.State) -> None:
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        plain(path, state)
        if calls == number and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def pieces(state: state_file.State) -> Any:
        for index, piece in enumerate(pieces_of(state)):
            if calls == number and moment == "within" and index > 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

    resume.write_state, state_file._pieces = write, pieces


def noted_passes(note: Callable[[str], object]) -> None:
    """Calls `note` with the name of each pass that begins."""
    plain = base._run

    def run(name: str, step: base.Pass, ctx: base.Context) -> base.PassReport:
        note(name)
        return plain(name, step, ctx)

    base._run = run


def carry_out(order: dict[str, Any], note: Callable[[str], object]) -> None:
    resume.INTERVAL_S = 0.0
    noted_passes(note)
    if order["number"]:
        kill_at(order["number"], order["moment"])
    quantize(Path(order["folder"]) if order["folder"] else None, Path(order["out"]))


def _note(writer: int, name: str) -> None:
    os.write(writer, f"{name}\n".encode())


def main() -> None:
    base.pass_names()  # imports all passes, once for all processes
    importlib.import_module("torch._dynamo")  # which torch's optimizers import
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                carry_out(json.loads(line), partial(_note, writer))
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with open(reader) as names:  # noqa: PTH123  # a pipe
            ran = names.read().split()
        _, ended = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(ended), ran]), flush=True)


if __name__ == "__main__":
    main()
