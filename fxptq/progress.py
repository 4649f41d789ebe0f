"""How passes show where they are: nothing by default, a rich bar on a terminal, or whatever has a `task`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar


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


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:  # noqa: ARG002  # the protocol's arguments
        """See Progress."""

        def advance(steps: int = 1, note: str = "") -> None:
            pass

        yield advance


class RichProgress:
    """Bars on a terminal: one for each task that is open, tasks within tasks below each other.

    Args:
        console: where to draw; the standard error stream by default, so that output can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: RichBar | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """See Progress."""
        with self._shown() as (bars, inner):
            handle = bars.add_task(description, total=total, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                bars.update(handle, advance=steps, note=note)

            try:
                yield advance
            finally:
                if inner:
                    bars.remove_task(handle)

    @contextmanager
    def _shown(self) -> Iterator[tuple[RichBar, bool]]:
        """The bars, and whether they are those of a task around."""
        if self._bars is not None:
            yield self._bars, True
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichBar(*columns, console=self._console) as bars:
            self._bars = bars
            try:
                yield bars, False
            finally:
                self._bars = None
