"""Work: what one run of the student costs, so that a training can be as long for a small network as for a large one.

A simulated network spends its time on two things: products, and the many operations on single values that stand for
quantizers. Both are counted while the network runs, so that the count is the same on every run and needs no clock.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fxptq.data.sources import Inputs
from fxptq.passes.base import Context

_OF_VALUE = 30
"""A value that an operation makes takes as long as so many multiply-accumulates (measured on SPAN, EDSR, SwinIR-light,
CRAFT and DAT-light on a CPU, forward and backward: within a fifth).
"""


class _Values(TorchDispatchMode):
    """Counts the values that all operations make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts."""
        made = func(*args, **(kwargs or {}))
        self.count += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


@torch.no_grad()
def work_of(ctx: Context, batch: Inputs) -> float:
    """The work of a run of the student on a batch, in multiply-accumulates."""
    inputs = ctx.placed(batch)
    with FlopCounterMode(display=False) as products, _Values() as values:
        ctx.student(*inputs)
    return float(products.get_total_flops() / 2 + _OF_VALUE * values.count)
