"""Compiles the blocks that a network repeats: one compilation serves all of them, in seconds instead of minutes."""

from __future__ import annotations

from collections import Counter

from torch import nn


def compile_blocks(model: nn.Module) -> None:
    """Runs each repeated block through torch.compile, in place; a network without such blocks is compiled whole.

    A block is a module, not one of torch's own, that stands beside others of its class in a list or sequence and holds
    no such list itself.
    """
    blocks = [
        block
        for holder in model.modules()
        if isinstance(holder, nn.ModuleList | nn.Sequential)
        for block in _repeated(holder)
        if not any(_repeated(inner) for inner in block.modules() if isinstance(inner, nn.ModuleList | nn.Sequential))
    ]
    for block in blocks or [model]:
        block.compile(dynamic=False)


def _repeated(holder: nn.ModuleList | nn.Sequential) -> list[nn.Module]:
    own = [module for module in holder if not type(module).__module__.startswith("torch.")]
    counts = Counter(map(type, own))
    return [module for module in own if counts[type(module)] > 1]
