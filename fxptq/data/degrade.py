"""The damage that makes a network's input from a clean picture, as a value that can be stored and applied.

Promises: a degradation is a frozen description; the same generator state gives the same input. The table of tasks
(fxptq.data.tasks) says what each kind does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxptq.data.tasks import Level, Task, takers_of, task_named
from fxptq.errors import InputError

LEVELS: dict[Level, float] = {"scale": 1, "sigma": 0.0, "quality": 0, "amount": 0.0}
"""The levels, with the value that stands for none."""


@dataclass(frozen=True)
class Degradation:
    """The damage that makes a network's input from the clean picture.

    Attributes:
        kind: the name of a task.
        scale: size of the clean picture over the size of the input; above 1 only for "bicubic".
        sigma: standard deviation of "noise" on the scale 0..255; 0 for other kinds.
        quality: quality of "jpeg", 1 (worst) to 100; 0 for other kinds.
        amount: the level of a task that has none of these; 0 for other kinds.

    Raises:
        InputError: a value out of its range, or a level that belongs to another kind.
    """

    kind: str
    scale: int = 1
    sigma: float = 0.0
    quality: int = 0
    amount: float = 0.0

    def __post_init__(self) -> None:
        for level, none in LEVELS.items():
            value = getattr(self, level)
            sound = self.task.allows(value) if self.task.level == level else value == none
            if not sound:
                raise InputError(
                    f"degradation {self.kind!r} cannot have {level} {value}; {takers_of(level)}, other kinds none"
                )

    @property
    def task(self) -> Task:
        """The row of the table of tasks."""
        return task_named(self.kind)

    @property
    def level(self) -> float:
        """How strong the damage is; 0 for a task without levels."""
        return float(getattr(self, self.task.level)) if self.task.level else 0.0

    def __str__(self) -> str:
        """In words, for reports: "bicubic x4", "noise sigma 25", "jpeg quality 40", "none"."""
        if self.task.level == "scale":
            return f"{self.kind} x{self.scale}"
        return f"{self.kind} {self.task.level} {self.level:g}" if self.task.level else self.kind

    def apply(self, hr: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Makes the degraded picture.

        Args:
            hr: clean picture, `[H, W, C]` uint8 with C of 1 or 3. For bicubic, H and W are first cropped at the bottom
                and right to multiples of the scale.
            rng: source of random damage, such as "noise"; other kinds draw nothing.

        Returns:
            `[H // scale, W // scale, C]` float32 on the scale 0..255. Levels are whole numbers; only "noise" is neither
            rounded nor clipped, as in the denoising literature.

        Raises:
            InputError: the picture is smaller than the scale.
        """
        return self.task.damage(hr, self.level, rng)
