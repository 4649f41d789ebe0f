"""The interim state of a pass: what a long pass saves while it works, so that a run that was killed goes on within it.

A pass without interim states is saved after it has run, and begins anew otherwise. `Context.interim` takes states: its
default keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fxptq.io.state_file import State


class Interim(Protocol):
    """Keeps the state of the pass that is running."""

    def load(self, name: str) -> State | None:
        """The state that the pass of this name saved last, before the run was killed; None if there is none.

        All processes of a run must ask, and all get the state.
        """
        ...

    def save(self, name: str, make: Callable[[], State]) -> None:
        """Saves the state of the pass of this name if it is time for it.

        Args:
            name: of the pass.
            make: makes the state; it is called only if the state is saved.
        """
        ...


class NothingKept:
    """Keeps no state."""

    def load(self, name: str) -> State | None:  # noqa: ARG002  # the protocol's argument
        """None."""
        return None

    def save(self, name: str, make: Callable[[], State]) -> None:
        """Saves nothing."""
