"""How a run shows where it is: nothing, bars on a terminal, lines elsewhere, or whatever has a `task`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.text import Text

from fxptq.stages import Run, Stage, shown_seconds

MINUTE = 60.0
"""Seconds between two lines where there is no terminal. A run that ends earlier gives none."""


class Advance(Protocol):
    """Moves a task on."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Report `steps` more done, and optionally a short note such as the loss."""
        ...


class Progress(Protocol):
    """Shows tasks of known length."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A context in which `total` steps will be reported."""
        ...


class Overall(Progress, Protocol):
    """Shows the tasks of a run of several stages, and the run as a whole."""

    def run(self, name: str, stages: Sequence[Stage]) -> AbstractContextManager[Callable[[], None]]:
        """A context for a run; its value is called at the end of each stage. Tasks within belong to the stage."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:  # noqa: ARG002  # the protocol's arguments
        """See Progress."""

        def advance(steps: int = 1, note: str = "") -> None:
            pass

        yield advance

    @contextmanager
    def run(self, name: str, stages: Sequence[Stage]) -> Iterator[Callable[[], None]]:  # noqa: ARG002  # likewise
        """See Overall."""
        yield lambda: None


class _Left(TimeRemainingColumn):
    """The time that a task may still take: its own estimate, if it has one."""

    def render(self, task: Task) -> Text:
        own = task.fields.get("left")
        return super().render(task) if own is None else Text(own, style="progress.remaining")


class _Count(MofNCompleteColumn):
    """Steps done of steps; of a run as a whole its part in percent."""

    def render(self, task: Task) -> Text:
        return super().render(task) if "left" not in task.fields else Text(f"{task.percentage:.0f} %")


class RichProgress:
    """Bars on a terminal: one for each task that is open, tasks within tasks below each other.

    Args:
        console: where to draw; the standard error stream by default, so that output can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: RichBar | None = None
        self._stages: Callable[[float], None] | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """See Progress."""
        with self._shown() as (bars, inner):
            handle, done = bars.add_task(description, total=total, note=""), 0

            def advance(steps: int = 1, note: str = "") -> None:
                nonlocal done
                done += steps
                bars.update(handle, advance=steps, note=note)
                if self._stages is not None and total:
                    self._stages(done / total)

            try:
                yield advance
            finally:
                if inner:
                    bars.refresh()
                    bars.remove_task(handle)

    @contextmanager
    def run(self, name: str, stages: Sequence[Stage]) -> Iterator[Callable[[], None]]:
        """See Overall."""
        overall = Run(name, stages)
        with self._shown() as (bars, _):
            handle = bars.add_task(name, total=1000, note="", left="")

            def draw() -> None:
                stage, left = overall.current, overall.seconds_left()
                where = "" if stage is None else f", {len(overall.done) + 1} of {len(stages)}: {stage.name}"
                soon = "" if left is None else f"{shown_seconds(left)} left"
                bars.update(handle, description=name + where, completed=int(1000 * overall.fraction()), left=soon)

            def steps(fraction: float) -> None:
                overall.steps(fraction)
                draw()

            def next_stage() -> None:
                overall.next()
                draw()

            draw()
            self._stages = steps
            try:
                yield next_stage
            finally:
                self._stages = None

    @contextmanager
    def _shown(self) -> Iterator[tuple[RichBar, bool]]:
        """The bars, and whether another task shows them already."""
        if self._bars is not None:
            yield self._bars, True
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            _Count(),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[note]}"),
        )
        with RichBar(*columns, console=self._console) as bars:
            self._bars = bars
            try:
                yield bars, False
            finally:
                self._bars = None


@dataclass
class _Open:
    """A task that is under way."""

    description: str
    total: int
    done: int = 0
    note: str = ""

    def __str__(self) -> str:
        counted = f"{self.description} {self.done} of {self.total}"
        return f"{counted} ({self.note})" if self.note else counted


class Lines:
    """Lines where there is no terminal: none in the first minute; then one at the end of each stage and one a minute.

    Args:
        say: prints a line.
        pause: seconds until the first line, and between two lines.
    """

    def __init__(self, say: Callable[[str], None], pause: float = MINUTE) -> None:
        self._say, self._pause = say, pause
        self._lock = threading.RLock()
        self._overall: Run | None = None
        self._told: int | None = None  # stages whose end was said; None before the first line
        self._open: list[_Open] = []
        self._depth = 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """See Progress."""
        own = _Open(description, total)

        def advance(steps: int = 1, note: str = "") -> None:
            own.done, own.note = own.done + steps, note
            if self._overall is not None and total:
                self._overall.steps(own.done / total)

        with self._clock():
            self._open.append(own)
            try:
                yield advance
            finally:
                self._open.remove(own)

    @contextmanager
    def run(self, name: str, stages: Sequence[Stage]) -> Iterator[Callable[[], None]]:
        """See Overall."""
        overall = Run(name, stages)

        def next_stage() -> None:
            with self._lock:
                overall.next()
                if self._told is not None:
                    self._tell_ends(overall)

        with self._clock():
            self._overall = overall
            try:
                yield next_stage
            finally:
                self._overall = None

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Within the outermost context, a thread says a line whenever a pause is over."""
        if self._depth:
            yield
            return
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(self._pause):
                with self._lock:
                    self._tell()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        self._depth = 1
        try:
            yield
        finally:
            self._depth, self._told = 0, None
            ended.set()
            thread.join()

    def _tell(self) -> None:
        """Says the ends of stages that were not said yet, and where the work is."""
        tasks = list(self._open)
        where = ", ".join(str(task) for task in (tasks[:1] + tasks[1:][-1:]))
        overall = self._overall
        if overall is None:
            if where:  # nothing is open yet, or any more
                self._say(where)
            return
        self._tell_ends(overall)
        if overall.current is not None:
            left = overall.seconds_left()
            soon = "" if left is None else f", about {shown_seconds(left)} left"
            at = f"{len(overall.done) + 1} of {len(overall.stages)}: {where or overall.current.name}"
            self._say(f"{overall.name}, {at}, {shown_seconds(overall.seconds)} so far{soon}")

    def _tell_ends(self, overall: Run) -> None:
        for index in range(self._told or 0, len(overall.done)):
            took = shown_seconds(overall.done[index])
            self._say(f"{overall.name}, {index + 1} of {len(overall.stages)}: {overall.stages[index].name}, {took}")
        self._told = len(overall.done)
