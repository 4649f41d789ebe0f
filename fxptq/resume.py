"""The folder of a run: its state after each pass and within long ones, so that a run that was killed goes on.

Promises: a run that goes on ends with the bytes of a run that was not killed, on the same machine and with the same
number of threads. The folder of another run is refused with a line that names the difference. Of several processes the
first one reads and writes, and all get the state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxptq._version import __version__
from fxptq.checkpoint.student import restore_student, student_state
from fxptq.errors import InputError
from fxptq.graph import Program
from fxptq.io.files import check_writable
from fxptq.io.state_file import State, read_state, write_state
from fxptq.passes.base import Context, PassReport, get_pass
from fxptq.quant.distribution import Distribution
from fxptq.quant.sketch import Sketch
from fxptq.ranks import Ranks

_RUN, _STUDENT, _PASS, _NOTES = "run", "student", "pass", "notes"
"""The entry that says which run a file belongs to, and the names of the files."""

_KEPT = frozenset({"histogram", "moments"})
"""The statistics that a context holds; statistics of other packages live elsewhere, and are not saved."""

_LONGEST = 40
"""Characters of a value in a message."""

INTERVAL_S = 30.0
"""Seconds from one interim state of a pass to the next, at least."""

_SHARE = 0.05
"""The part of a pass that saving may take."""


def digest(value: object) -> str:
    """SHA-256 of the text of a value, hexadecimal."""
    return hashlib.sha256(str(value).encode()).hexdigest()


class RunFolder:
    """The folder of a run.

    Args:
        path: of the folder, which need not exist.
        ranks: the processes of the run.
        about: more that the folder's files depend on; see `open`.
    """

    def __init__(self, path: Path, ranks: Ranks, about: Mapping[str, str] | None = None) -> None:
        self.path, self._ranks = path, ranks
        self._identity: dict[str, str] = dict(about or {})
        self._next_save = 0.0

    def open(self, identity: Mapping[str, str]) -> None:
        """Checks that the folder is new, or that of this run.

        Args:
            identity: all that decides the result of the run, each by its name for people; long values as `digest`.

        Raises:
            InputError: it is the folder of another run, a file in it is damaged, or nothing can be written.
        """
        made_by = {"fxptq version": __version__, "torch version": torch.__version__}
        self._identity |= {**made_by, "number of processes": str(self._ranks.world), **identity}

        def check() -> None:
            if not self._ranks.first:
                return
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{self.path}: is a file; expected the name of a folder for the state of the run")
            check_writable(self._file(_STUDENT))
            for name in (_STUDENT, _PASS, _NOTES):
                self._checked(name)

        self._ranks.together(check)
        self._next_save = time.monotonic() + INTERVAL_S

    # -- between passes ------------------------------------------------------------------------------------------------

    def go_on(self, ctx: Context, student: Program) -> tuple[tuple[PassReport, ...], int]:
        """Gives the networks and statistics of a run the state behind the last pass that was saved.

        Returns:
            The reports of the passes that are done, and the number of entries in the list of passes that are.
        """
        state = self._read(_STUDENT)
        if state is None:
            return (), 0
        restore_student(student, state)
        ctx.collected = set(state.numbers["collected"])
        ctx.statistics.update(_statistics(state))
        ctx.moments.update({key: tensor.clone() for key, tensor in _below("moments.", state).items()})
        return tuple(map(_report_of, state.numbers["reports"])), state.numbers["done"]

    def save(
        self, ctx: Context, student: Program, reports: Sequence[PassReport], done: int, left: Sequence[str]
    ) -> None:
        """Saves the state behind a pass; `go_on` reads it back.

        Where a later pass needs statistics that are not kept in the context, a run can only go on before these were
        gathered, so nothing is saved.

        Args:
            ctx: the statistics.
            student: the network.
            reports: of the passes that ran.
            done: the number of entries in the list of passes that are done.
            left: the names of the passes that follow.
        """
        needed = frozenset().union(*(get_pass(name).needs for name in left))
        if not self._ranks.first or needed & (ctx.collected - _KEPT):
            return
        state = student_state(student)
        tensors = dict(state.tensors)
        if left:
            for key, values in ctx.statistics.items():
                own = {f.name: getattr(values, f.name) for f in dataclasses.fields(Distribution)}
                tensors |= {f"statistics.{name}.{key}": tensor for name, tensor in own.items()}
        if "moments" in needed:
            tensors |= {f"moments.{key}": tensor for key, tensor in ctx.moments.items()}
        numbers = {
            **state.numbers,
            "done": done,
            "collected": sorted(ctx.collected & (_KEPT if "moments" in needed else _KEPT - {"moments"})),
            "reports": [dataclasses.asdict(report) for report in reports],
        }
        self._write(_STUDENT, State(numbers, tensors))
        self._file(_PASS).unlink(missing_ok=True)  # of the pass that is done

    def noted(self, name: str, make: Callable[[], Any]) -> Any:
        """JSON that is made once in a run, however often the run is killed.

        Args:
            name: of the value.
            make: makes it; all processes of the run call it, or none does.
        """
        state = self._read(_NOTES)
        notes = dict(state.numbers["notes"]) if state is not None else {}
        if name not in notes:
            notes[name] = json.loads(json.dumps(make()))
            if self._ranks.first:
                self._write(_NOTES, State({"notes": notes}))
        return notes[name]

    # -- within a pass -------------------------------------------------------------------------------------------------

    def interim(self, done: int) -> FolderInterim:
        """Takes the states of the pass that runs when so many entries in the list of passes are done."""
        return FolderInterim(self, done)

    def read_interim(self, name: str, done: int) -> State | None:
        """The state of a pass; see `Interim`."""
        state = self._read(_PASS)
        return state if state is not None and (state.numbers["pass"], state.numbers["done"]) == (name, done) else None

    def save_interim(self, name: str, done: int, make: Callable[[], State]) -> None:
        """Saves the state of a pass; see `Interim`."""
        started = time.monotonic()
        if not self._ranks.first or started < self._next_save:
            return
        state = make()
        self._write(_PASS, State({**state.numbers, "pass": name, "done": done}, state.tensors))
        ended = time.monotonic()
        self._next_save = ended + max(INTERVAL_S, (ended - started) / _SHARE if INTERVAL_S else 0.0)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _write(self, name: str, state: State) -> None:
        write_state(self._file(name), State({_RUN: dict(self._identity), **state.numbers}, state.tensors))

    def _read(self, name: str) -> State | None:
        """The state in a file, for all processes."""
        return self._ranks.from_first(self._ranks.together(lambda: self._checked(name) if self._ranks.first else None))

    def _checked(self, name: str) -> State | None:
        state = read_state(self._file(name))
        if state is None:
            return None
        there = state.numbers.get(_RUN)
        if not isinstance(there, dict):
            raise InputError(f"{self._file(name)}: no state of a run; give another folder")
        for what in (*self._identity, *there):
            here, other = self._identity.get(what, "none"), there.get(what, "none")
            if here != other:
                long = max(len(here), len(other)) > _LONGEST
                found = f"other {what}" if long else f"{what} {other}, and this one has {here}"
                raise InputError(f"{self.path} is the folder of another run, which has {found}; give another folder")
        return state


@dataclass(frozen=True)
class FolderInterim:
    """Takes the states of one pass into the folder of a run; see `Interim`."""

    folder: RunFolder
    done: int

    def load(self, name: str) -> State | None:
        """See `Interim`."""
        return self.folder.read_interim(name, self.done)

    def save(self, name: str, make: Callable[[], State]) -> None:
        """See `Interim`."""
        self.folder.save_interim(name, self.done, make)


def _below(prefix: str, state: State) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in state.tensors.items() if name.startswith(prefix)}


def _statistics(state: State) -> dict[str, Distribution]:
    columns = {f.name: _below(f"statistics.{f.name}.", state) for f in dataclasses.fields(Distribution)}
    return {key: Distribution(**{name: own[key] for name, own in columns.items()}) for key in columns["values"]}


def _report_of(numbers: Mapping[str, Any]) -> PassReport:
    """A report as it was before it became JSON."""
    return PassReport(
        **{
            **numbers,
            "series": {name: tuple(values) for name, values in numbers["series"].items()},
            "notes": tuple(numbers["notes"]),
            "warnings": tuple(numbers["warnings"]),
            "sketches": {
                key: Sketch(**{**sketch, "counts": tuple(sketch["counts"])})
                for key, sketch in numbers["sketches"].items()
            },
        }
    )
