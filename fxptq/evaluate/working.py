"""The memory that the tensors of a call take at most, measured while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


def working_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that tensors made by `call` hold at one time.

    Args:
        call: runs a network.
        device: where it runs. On the CPU, memory that an operator takes inside of itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        call()
        most: int = torch.cuda.max_memory_allocated(device)
        return most - before
    watch = _Watch()
    with watch:
        call()
    largest: int = watch.most
    return largest


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Adds up the storages that operators return, until they are freed.

    Attributes:
        most: the largest sum so far, bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs or {}))}
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in before:  # a view, or the operand of an in-place call, is no new memory
                kept = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[storage.data_ptr()] = (kept, storage.nbytes())
        self._alive = {place: kept for place, kept in self._alive.items() if not kept[0].expired()}  # type: ignore[no-untyped-call]
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return output


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
