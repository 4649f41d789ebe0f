"""The node that computes each tensor of a trace, and the tensors that share memory.

The ledger finds tensors by identity and refers to them weakly, so that it neither changes a tensor nor keeps it alive.
"""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from weakref import ReferenceType, ref

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary


class Ledger:
    """The tensors met in one trace.

    Args:
        model: the network; its parameters, buffers and plain tensor attributes have names.
        prefix: prefix of the names of parameters and buffers.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        self._nodes: MutableMapping[Tensor, fx.Node] = WeakTensorKeyDictionary()
        self._sharing: dict[Hashable, list[tuple[fx.Node, ReferenceType[Tensor]]]] = {}
        self._names: dict[int, tuple[str, Tensor]] = {}
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    self._names[id(value)] = (f"constants.{path}.{key}".replace("..", "."), value)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._names[id(tensor)] = (f"{prefix}.{name}", tensor)

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a tensor of the network: `model.head.weight`, `constants.head.mean`; None for any other."""
        entry = self._names.get(id(tensor))
        return entry[0] if entry else None

    def is_networks_own(self, tensor: Tensor) -> bool:
        """Whether the tensor was there before the trace."""
        return id(tensor) in self._names

    def node_of(self, tensor: Tensor) -> fx.Node | None:
        """The node that computes the tensor now."""
        return self._nodes.get(tensor)

    def enter(self, tensor: Tensor, node: fx.Node) -> None:
        """Notes that `node` computes `tensor`."""
        self._nodes[tensor] = node
        self._sharers(tensor).append((node, ref(tensor)))

    def replace(self, tensor: Tensor, node: fx.Node) -> None:
        """Notes that `tensor`, which shares its memory with no other, was overwritten with the value of `node`."""
        self._nodes[tensor] = node
        self._sharers(tensor)[:] = [(node, ref(tensor))]

    def sharing(self, tensor: Tensor) -> list[fx.Node]:
        """The nodes whose values lie in the memory of this tensor."""
        return [node for node, _ in self._sharers(tensor)]

    def _sharers(self, tensor: Tensor) -> list[tuple[fx.Node, ReferenceType[Tensor]]]:
        return self._sharing.setdefault(_memory(tensor), [])

    def is_alone(self, tensor: Tensor) -> bool:
        """Whether the tensor was made in the forward, is no view, and no view of it exists any more."""
        view = tensor._base is not None  # noqa: SLF001  # PyTorch's only word on whether a tensor is a view
        sharers = (reference() for _, reference in self._sharers(tensor))
        return not view and not self.is_networks_own(tensor) and all(x is None or x is tensor for x in sharers)


def _memory(tensor: Tensor) -> Hashable:
    """The tensor's storage as a key. A weak reference: while it lives, no other storage gets the same key."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return id(tensor)
    reference: Hashable = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch's own
    return reference
