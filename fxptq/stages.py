"""The stages of a long run: which one it is in, how far it is, and how long the whole may still take.

The time left is an estimate. A stage that is under way is extrapolated from its own steps; a later one from its weight
beside the stages that are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_ENOUGH = 0.1  # of a stage that must be done before its own steps say more than its weight


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: what people call it.
        weight: how long it takes beside other stages, in any unit.
    """

    name: str
    weight: float = 1.0


class Run:
    """A run through stages, in order.

    Args:
        name: what people call the whole.
        stages: its stages.
        clock: the time in seconds.

    Attributes:
        name: as given.
        stages: as given.
        done: the seconds that each finished stage took, in order.
    """

    def __init__(self, name: str, stages: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.stages, self._clock = name, tuple(stages), clock
        self.done: list[float] = []
        self._began = self._stage_began = clock()
        self._fraction = 0.0

    @property
    def current(self) -> Stage | None:
        """The stage that is under way; None at the end."""
        return self.stages[len(self.done)] if len(self.done) < len(self.stages) else None

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._clock() - self._began

    def steps(self, fraction: float) -> None:
        """The part of the current stage that is done, 0 to 1."""
        self._fraction = min(1.0, max(0.0, fraction))

    def next(self) -> None:
        """The current stage is done."""
        now = self._clock()
        self.done.append(now - self._stage_began)
        self._stage_began, self._fraction = now, 0.0

    def seconds_left(self) -> float | None:
        """An estimate for the whole run; None as long as nothing is known."""
        if self.current is None:
            return 0.0
        in_stage = self._clock() - self._stage_began
        own = in_stage * (1 - self._fraction) / self._fraction if self._fraction >= _ENOUGH else None
        weighed = sum(stage.weight for stage in self.stages[: len(self.done)])
        known = sum(self.done)
        if own is not None:  # the current stage says most of how fast this machine is
            weighed, known = weighed + self.current.weight, known + in_stage + own
        if not weighed or not known:
            return None
        pace = known / weighed
        later = pace * sum(stage.weight for stage in self.stages[len(self.done) + 1 :])
        return later + (own if own is not None else max(0.0, pace * self.current.weight - in_stage))

    def fraction(self) -> float:
        """The part of the whole that is done, 0 to 1, by time as far as it can be estimated."""
        left, passed = self.seconds_left(), self.seconds
        if left is None:
            return 0.0
        return passed / (passed + left) if passed + left else 1.0


def shown_seconds(seconds: float) -> str:
    """A span of time for people: "8 s", "3 min", "1 h 20 min"."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
