"""The tensors of a network by name, whatever its state-dict hooks and extra states say."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, as a `state_dict` without hooks has them: shared ones under every name."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        passing = module._non_persistent_buffers_set  # noqa: SLF001  # torch has no other word on it
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found.update({dot + name: tensor for name, tensor in own if name not in passing})
    return found


def lazy_tensors(model: nn.Module) -> Iterator[str]:
    """The names of parameters and buffers that do not exist yet, because their lazy layer was never run."""
    every = (*model.named_parameters(), *model.named_buffers())
    return (name for name, tensor in every if is_lazy(tensor))
