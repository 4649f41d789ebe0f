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
    """One bar a task on a terminal.

    Args:
        console: where to draw; the standard error stream by default, so that output can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """See Progress."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichBar(*columns, console=self._console) as bar:
            handle = bar.add_task(description, total=total, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                bar.update(handle, advance=steps, note=note)

            yield advance
