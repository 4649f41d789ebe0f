"""Copies of networks, so that no work of fxptq changes the user's own network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from fxptq.errors import CaptureError
from fxptq.graph.depth import room_for
from fxptq.graph.wrappers import network_of, unwrap_inside


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with `model`, without the wrappers of torch.compile or DataParallel.

    Raises:
        CaptureError: an attribute of the network cannot be copied.
    """
    return unwrap_inside(_copied(network_of(model), {}))


def structural_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the memory of the parameters with `model` and owns its buffers and every other state.

    Raises:
        CaptureError: an attribute of the network cannot be copied.
    """
    aliases = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return _copied(model, dict(aliases))


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for tensor in _plain_tensors(model):
        # Tensors with a history (the weight that the hook of weight_norm left) refuse to be deep-copied.
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
    for buffer in model.buffers():
        if isinstance(buffer, UninitializedBuffer):  # torch can copy parameters that do not exist yet, and not these
            twin = UninitializedBuffer(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]  # torch's
            memo[id(buffer)] = twin
    try:
        with torch.no_grad(), room_for(model):  # TorchScript copies its parameters by computing with them
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); remove from its attributes "
            "what cannot be, such as locks, generators or open files"
        ) from error


def _plain_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors in plain attributes of the modules, also in lists, tuples, dicts and objects."""
    waiting: list[Any] = [vars(module) for module in model.modules()]
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, ModuleType, FunctionType, nn.Module)):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif hasattr(value, "__dict__"):
            waiting.append(vars(value))
