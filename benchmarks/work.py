"""The work of a lowered network: its multiplications, and the bytes that its kernels read and write."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Work(TorchDispatchMode):
    """Counts the work of the operations that run inside the block, one kernel each; the network must be uncompiled.

    Attributes:
        products: multiplications of integer codes.
        bytes: size of all tensors that operations read and write; views are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        storages = {x.untyped_storage().data_ptr() for x in inputs}
        if any(x.untyped_storage().data_ptr() not in storages for x in outputs):
            self.bytes += sum(x.numel() * x.element_size() for x in (*inputs, *outputs))
        if func.namespace == "fxptq":
            self.products += products(func.__name__.split(".")[0], args, kwargs, outputs[0])
        return result


def products(operator: str, args: Any, kwargs: dict[str, Any], output: Tensor) -> int:
    """Counts the multiplications of codes in a call of an operator, whose output is a tensor."""
    if operator in ("linear", "rows_linear", "matmul"):
        return output.numel() * args[0].shape[-1]
    if operator in ("conv2d", "narrow_conv2d", "rows_conv2d"):
        return output.numel() * args[0].shape[1] // kwargs.get("groups", 1) * prod(kwargs["kernel_size"])
    if operator == "depthwise_conv2d":
        return output.numel() * prod(kwargs["kernel_size"])
    if operator == "conv3x3":
        return output.numel() * args[0].shape[1] * 9
    if operator == "attention":
        query, key, value = args
        return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return 0


def work_of(network: nn.Module, x: Tensor) -> Work:
    """Counts the work of one call, after a first call in which the network may prepare for the size."""
    network(x)
    with Work() as work:
        network(x)
    return work
