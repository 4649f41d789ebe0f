"""Random numbers of fxptq's own runs of a network: the same in every run, and drawn from no stream of the caller.

Few networks draw random numbers when they restore. For all others the process's generators are never touched, so that
other threads may draw from them meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fxptq.graph.functions import is_random


class _Entered(threading.local):
    """The modes that this thread has entered, the outermost first."""

    def __init__(self) -> None:
        self.modes: list[OwnRandomNumbers] = []


_ENTERED = _Entered()


class OwnRandomNumbers(TorchFunctionMode):
    """Within, torch calls of this thread draw the random numbers of a seed; afterwards the generators are as before.

    The generators of the CPU and, where CUDA is in use, of its devices are set at the first call that draws. Entered
    again, the numbers go on where they ended. Every torch call within takes some microseconds more. Calls in
    TorchScript and inside operators of other packages are not seen.

    Args:
        seed: of the random numbers.

    Attributes:
        drew: whether a call within has drawn.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.drew = False
        self._seed = seed
        self._before: list[tuple[torch.Generator, Tensor]] = []
        self._after: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._before and is_random(func, args, kwargs):
            self.drew = True
            if not self._set_within():
                self._set()
        return func(*args, **kwargs)

    def _set(self) -> None:
        """Gives the generators the numbers of the seed, from the first or the next one on."""
        self._before = [(generator, generator.get_state()) for generator in _generators()]
        for (generator, _), state in zip_longest(self._before, self._after):
            # torch.manual_seed would seed every device, also a device that is not in use yet.
            generator.manual_seed(self._seed) if state is None else generator.set_state(state)

    def _set_within(self) -> bool:
        """Whether a mode that was entered after this one has set the generators, and will set them back."""
        modes = _ENTERED.modes
        return any(mode._before for mode in modes[modes.index(self) + 1 :])  # noqa: SLF001  # of its own class

    def __enter__(self) -> OwnRandomNumbers:
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's own
        _ENTERED.modes.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _ENTERED.modes.remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's own
        if self._before:
            self._after = [generator.get_state() for generator, _ in self._before]
        for generator, state in self._before:
            generator.set_state(state)
        self._before = []


def _generators() -> tuple[torch.Generator, ...]:
    """The generators that a call without a generator of its own may draw from."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's own
    return (torch.default_generator, *(torch.cuda.default_generators if in_use else ()))
