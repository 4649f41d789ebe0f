"""The tensors of a network by name, whatever its state-dict hooks and extra states say; and a digest of a tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
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


def digest_of(tensor: Tensor) -> str:
    """A digest of the type, the shape and the bytes of a tensor: equal for equal tensors, on any device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    about = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.blake2b(flat.numpy().tobytes() + about, digest_size=16).hexdigest()
