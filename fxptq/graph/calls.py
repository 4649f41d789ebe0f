"""The calls in a graph: one name for all spellings of a call, and facts about calls by name (a move, a floor, ...).

kinds.py has the calls that do arithmetic. Importing this module loads no torch.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx


def words(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


LAYOUT = words(
    "view reshape permute transpose contiguous flatten unflatten squeeze unsqueeze getitem chunk split tensor_split "
    "unbind roll expand expand_as repeat clone detach data to type type_as float half double bfloat16 cpu cuda "
    "pixel_shuffle pixel_unshuffle channel_shuffle unfold t T mT moveaxis movedim swapaxes swapdims narrow select "
    "view_as reshape_as flip rot90 split_with_sizes broadcast_to repeat_interleave index_select gather take_along_dim"
)
"""Calls that move values and change none."""

MIXING = words(
    "cat concat concatenate stack pad interpolate upsample dropout max_pool2d avg_pool2d adaptive_avg_pool2d"
)
"""Calls whose values lie between the values of their inputs and one other number: the fill value of `pad`, or zero."""

LOWEST: dict[str, float | None] = {
    **dict.fromkeys(words("softmax relu relu6 sigmoid hardsigmoid softplus exp abs square"), 0.0),
    **dict.fromkeys(words("gelu silu hardswish mish")),
}
"""Calls with a one-sided output, whose values mostly lie at the lower end; with the exact floor, or None."""

ADD = words("add __add__ iadd __iadd__")

_ALIASES = {
    "__getitem__": "getitem",
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "linalg_multi_dot": "multi_dot",
}


def name_of_function(func: Any) -> str:
    """The name of a function as `__torch_function__` hands it over."""
    return getattr(func, "__name__", str(func))


def plain_name(name: str) -> str:
    """One name for the spellings of a function: `mm`, `bmm` and `__matmul__` are `matmul`, `relu_` is `relu`."""
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    if name.startswith("_") and not name.startswith("__"):
        name = name[1:]
    return _ALIASES.get(name, name)


def name_of(node: fx.Node) -> str:
    """The plain name of the call: `matmul`, `linear`, `getitem`, `T`; empty for a node that is not a call."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function":
        if node.target is getattr:
            return str(node.args[1])
        name = "add" if node.target in (operator.add, operator.iadd) else name_of_function(node.target)
    else:
        return ""
    return plain_name(name)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def is_custom_operator(target: Any) -> bool:
    """Whether the target is an operator that another package registered, not one of PyTorch's."""
    from torch._ops import OpOverload, OpOverloadPacket  # noqa: PLC0415  # recipes read the table of kinds without torch

    if not isinstance(target, (OpOverload, OpOverloadPacket)):
        return False
    return str(target).split(".", maxsplit=1)[0] not in ("aten", "prims", "prim")


def is_torchs_own(target: Any) -> bool:
    """Whether torch or Python defines the function, so that its name says what it computes; methods are Tensor's.

    The functions and operators of others may have any name: an autograd function `exp`, an operator `mine::linear`.
    """
    if isinstance(target, str):
        return True
    home = (getattr(target, "__module__", None) or "torch").split(".", maxsplit=1)[0]
    return home in ("torch", "builtins", "_operator") and not is_custom_operator(target)
