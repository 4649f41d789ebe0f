"""One way to run a network, in a process of its own that prepares it once and then runs it whenever it is asked.

`Worker` is the side of the process that measures, and this module is also the program of the other side. The two speak
in lines of JSON: the worker says how the preparation went, and then answers every line that it gets with a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from fxptq.bench.memory import Memory, of_call
from fxptq.bench.ways import subject, ways

WARMUP = 2  # calls
_TIMEOUT = 900.0  # seconds until a way is ready


@dataclass(frozen=True)
class Ready:
    """How the preparation of a way went.

    Attributes:
        prepare_s: seconds until the first result, compilation included, while other ways may be prepared as well.
        memory: the memory of a call.
        note: the reason why there is nothing to run; empty if the way is ready.
    """

    prepare_s: float = 0.0
    memory: Memory | None = None
    note: str = ""


class Worker:
    """A process that runs one way.

    Args:
        checkpoint, way, size, factory: see `fxptq.bench.measure.run`.
        threads: number of threads that the way may use.
    """

    def __init__(self, checkpoint: Path, way: str, size: str, threads: int, factory: str | None) -> None:
        command = [sys.executable, "-m", "fxptq.bench.worker", str(checkpoint), way, size, str(threads), factory or ""]
        # The command is the running interpreter with a module of this package.
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ready(self, within: float | None = None) -> Ready:
        """Waits until the way is prepared, or cannot be.

        Args:
            within: seconds after which the process is ended; a quarter of an hour if None.
        """
        impatience = threading.Timer(_TIMEOUT if within is None else max(within, 0.0), self._process.kill)
        impatience.start()
        try:
            said = self._answer()
        finally:
            impatience.cancel()
        if said is None:
            return Ready(note=self._end())
        memory = Memory(**said["memory"]) if said["memory"] else None
        return Ready(said["prepare_s"], memory, said["note"])

    def turn(self) -> float | None:
        """The milliseconds of the second of two calls; None if the process has ended."""
        assert self._process.stdin is not None  # a pipe  # noqa: S101
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except OSError:
            return None
        said = self._answer()
        return None if said is None else float(said["ms"])

    def stop(self) -> None:
        """Ends the process, wherever it is."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None  # a pipe  # noqa: S101
        line = self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return answer

    def _end(self) -> str:
        """How the process ended, in words."""
        status = self._process.wait()
        return f"its process was ended by signal {-status}" if status < 0 else f"its process ended with status {status}"


def _main(checkpoint: str, way: str, size: str, threads: str, factory: str) -> None:
    # Libraries print; their words must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    with torch.no_grad():
        try:
            what = subject(Path(checkpoint), factory or None, size)
            started = time.perf_counter()
            call = ways()[way](what)
            call()
            prepared = time.perf_counter() - started
            for _ in range(WARMUP):
                call()
            ready = Ready(prepared, of_call(call))
        except Exception as error:  # noqa: BLE001  # the table shows the error of a peer in place of a figure
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
            _say(answers, asdict(Ready(note=reason)))
            return
        _say(answers, asdict(ready))
        for _ in sys.stdin:
            call()
            started = time.perf_counter()
            call()
            _say(answers, {"ms": 1000 * (time.perf_counter() - started)})


def _say(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
