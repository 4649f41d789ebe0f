"""What a lowered network has to do, whatever its speed: multiplications, and bytes that its kernels read and write."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Work(TorchDispatchMode):
    """Counts the operations that run meanwhile, one kernel each: pass an uncompiled network.

    Attributes:
        products: multiplications of integer codes.
        bytes: of all tensors that operations take, and of those they make; views are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        places = {x.untyped_storage().data_ptr() for x in taken}
        if any(x.untyped_storage().data_ptr() not in places for x in made):
            self.bytes += sum(x.numel() * x.element_size() for x in (*taken, *made))
        if func.namespace == "fxptq":
            self.products += products(func.__name__.split(".")[0], args, kwargs, made[0])
        return result


def products(operator: str, args: Any, kwargs: dict[str, Any], made: Tensor) -> int:
    """Multiplications of codes in a call of an operator that made a tensor."""
    if operator in ("linear", "rows_linear"):
        return made.numel() * args[0].shape[-1]
    if operator in ("conv2d", "narrow_conv2d", "rows_conv2d"):
        return made.numel() * args[0].shape[1] * prod(kwargs["kernel_size"])
    if operator == "conv3x3":
        return made.numel() * args[0].shape[1] * 9
    if operator == "matmul":
        return made.numel() * args[0].shape[-1]
    if operator == "attention":
        query, key, value = args
        return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return 0


def work_of(network: nn.Module, x: Tensor) -> Work:
    """The work of one call, after one in which it may prepare for the size."""
    network(x)
    with Work() as work:
        network(x)
    return work
