"""What a call in a graph is, whatever spelling the network used: `x @ y`, `x.matmul(y)` and `torch.matmul(x, y)` are one thing."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

LAYOUT = frozenset(
    "view reshape permute transpose contiguous flatten unflatten squeeze unsqueeze getitem chunk split tensor_split unbind roll expand "
    "expand_as repeat clone detach to type type_as float half double bfloat16 cpu cuda pixel_shuffle pixel_unshuffle channel_shuffle "
    "unfold t T mT moveaxis movedim swapaxes swapdims narrow select view_as reshape_as flip rot90 split_with_sizes broadcast_to "
    "repeat_interleave index_select gather take_along_dim".split()
)
"""Calls that move values and change none."""

MIXING = frozenset(
    "cat concat concatenate stack pad interpolate upsample dropout max_pool2d avg_pool2d adaptive_avg_pool2d where".split()
)
"""Calls whose values lie between the values of their inputs (and zero)."""

LOWEST: dict[str, float | None] = {
    **dict.fromkeys("softmax relu relu6 sigmoid hardsigmoid softplus exp abs square hardtanh_".split(), 0.0),
    **dict.fromkeys("gelu silu hardswish mish".split(), None),
}
"""Calls whose output is one-sided, with its exact floor where it is reached: most values lie at the lower end."""

ADD = frozenset("add __add__ iadd __iadd__ add_".split())

_ALIASES = {
    "__getitem__": "getitem",
    "__matmul__": "matmul",
    "permute_copy": "permute",
    "mm": "matmul",
    "bmm": "matmul",
}


def name_of(node: fx.Node) -> str:
    """The plain name of the call: `matmul`, `linear`, `getitem`, `T`; empty for what is not a call."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function":
        if node.target is getattr:
            return str(node.args[1])
        name = (
            "add"
            if node.target in (operator.add, operator.iadd)
            else getattr(node.target, "__name__", str(node.target))
        )
    else:
        return ""
    name = _ALIASES.get(name, name)
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def first_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes among the first positional argument, looking into lists (`cat`)."""
    if not node.args:
        return ()
    head = node.args[0]
    if isinstance(head, fx.Node):
        return (head,)
    if isinstance(head, (list, tuple)):
        return tuple(item for item in head if isinstance(item, fx.Node))
    return ()
