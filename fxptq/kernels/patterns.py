"""Finds the calls around a site by the structure of the graph alone: moves of values, and epilogues.

The functions change no graph. A *move* changes no value, so that codes can be moved in place of values. A *stem* is a
layer with the scaling, activation and residual addition that follow it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq.graph.calls import ADD, LAYOUT, argument, name_of, words
from fxptq.graph.constants import attribute
from fxptq.graph.functions import writes
from fxptq.kernels.ops import Activation
from fxptq.kernels.shapes import Shapes

_MOVES = LAYOUT - words("to type type_as half float double bfloat16 cpu cuda unfold data")
_COPYING_PADS = words("reflect replicate circular")
_KEEPS_ROWS = words("view reshape contiguous clone float dropout")
_PRODUCTS = words("mul __mul__ __rmul__ multiply")
_SHAPE_QUERIES = words("shape size dim ndim numel")


def is_move(node: fx.Node) -> bool:
    """Whether the call only moves the values of its first argument, for codes as for values."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    name = name_of(node)
    if name == "pad":
        return str(argument(node, 2, "mode")) in _COPYING_PADS
    if name == "interpolate":
        return str(argument(node, 3, "mode", "nearest")) == "nearest"
    if name == "unfold":
        return node.op == "call_method"
    return name in _MOVES


def asks_for_shape(node: fx.Node) -> bool:
    """Whether the call reads only the sizes of its argument; codes have the same sizes as values."""
    return name_of(node) in _SHAPE_QUERIES


def factor_of(node: fx.Node) -> float | None:
    """The number a call multiplies its first argument by; None when it does anything else."""
    if len(node.args) != 2 or not isinstance(node.args[0], fx.Node):
        return None
    number = node.args[1]
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        return None
    name = name_of(node)
    if name in ("mul", "__mul__", "__rmul__", "multiply"):
        return float(number)
    if name in ("div", "truediv", "__truediv__", "divide") and number and "rounding_mode" not in node.kwargs:
        return 1.0 / number
    return None


def written(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes whose memory some call writes into, with their views: their values change after the node computed."""
    overwritten: set[fx.Node] = set()
    waiting: list[fx.Node] = []
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and writes(node.target, node.kwargs):
            waiting.extend(node.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in overwritten:
            continue
        overwritten.add(node)
        waiting.extend(user for user in node.users if is_move(user))
        if is_move(node):
            waiting.append(node.all_input_nodes[0])
    return frozenset(overwritten)


def readers(node: fx.Node) -> list[fx.Node]:
    """The users of a node that read its values."""
    return [user for user in node.users if not asks_for_shape(user)]


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one user of a node; None when there are more, or when it asks for sizes."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def channel_shift(node: fx.Node, holder: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Reads a float 1x1 convolution that mixes no channels; networks shift the mean of an image with such a layer.

    Args:
        node: any call.
        holder: the module whose tensors the graph reads.

    Returns:
        (scale, offset), each [C, 1, 1], with node = scale * input + offset; None for any other call.
    """
    if name_of(node) != "conv2d" or len(node.meta.get("shape", ())) != 4:
        return None
    weight, bias = (_stored_tensor(argument(node, at, name), holder) for at, name in ((1, "weight"), (2, "bias")))
    if weight is None or bias is None or weight.shape != (len(weight), len(weight), 1, 1):
        return None
    for at, name, plain in ((3, "stride", (1, (1,), (1, 1))), (4, "padding", (0, (0,), (0, 0), "valid"))):
        setting = argument(node, at, name, plain[0])
        if (tuple(setting) if isinstance(setting, list) else setting) not in plain:
            return None
    scale = weight[:, :, 0, 0].diagonal()
    if not torch.equal(weight[:, :, 0, 0], torch.diag(scale)):
        return None
    return scale.reshape(-1, 1, 1).clone(), bias.reshape(-1, 1, 1)


def _stored_tensor(node: object, holder: nn.Module) -> Tensor | None:
    """The tensor that a get_attr node reads from the holder; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    tensor: Tensor = attribute(holder, str(node.target))
    return tensor.detach()


def ends_in_softmax(node: fx.Node, shapes: Shapes) -> bool:
    """Whether a value goes into a softmax over its last axis alone, which does not see a term that a row shares.

    On the way it may be multiplied by numbers that a row shares, added to anything, and moved without touching rows.
    """
    own = readers(node)
    if len(own) != 1:
        return False
    user = own[0]
    name = name_of(user)
    if name == "softmax":
        return argument(user, 1, "dim") in (-1, len(node.meta.get("shape", ())) - 1)
    others = [term for term in user.args if term is not node]
    if name in _KEEPS_ROWS:
        keeps = all(new[-1:] == old[-1:] for new, old in zip(shapes.of(user), shapes.of(node), strict=False))
    elif name in ADD:
        keeps = len(others) == 1 and not user.kwargs
    elif name in _PRODUCTS and len(others) == 1 and isinstance(others[0], fx.Node):
        keeps = bool(shapes.of(others[0])) and all(shape[-1:] in ((), (1,)) for shape in shapes.of(others[0]))
    else:
        keeps = factor_of(user) is not None
    return keeps and ends_in_softmax(user, shapes)


@dataclass(frozen=True)
class Stem:
    """A layer and the calls after it that one operator computes with it.

    Attributes:
        layer: the linear or convolution node.
        end: the last node of the stem; the value of the stem is the value of this node.
        factor: multiplies the layer's output.
        activation: the activation after the factor.
        slope: the slope of a leaky activation below zero.
        residual: the tensor that is added after the activation; None where nothing is added.
        shuffle: the factor of a pixel shuffle at the end, only without a residual; 1 where there is none.
    """

    layer: fx.Node
    end: fx.Node
    factor: float = 1.0
    activation: Activation = Activation.NONE
    slope: float = 0.0
    residual: fx.Node | None = None
    shuffle: int = 1


def stem_of(
    layer: fx.Node, shapes: Shapes, excluded: frozenset[fx.Node] = frozenset(), *, shuffles: bool = True
) -> Stem:
    """The longest stem that begins with a layer and holds none of the excluded nodes.

    Args:
        layer: the linear or convolution node.
        shapes: the shapes of the graph's values.
        excluded: nodes that cannot vanish inside an operator.
        shuffles: whether the layer's outputs may be reordered, for a pixel shuffle at the end.
    """
    end, factor = layer, 1.0
    activation, slope = Activation.NONE, 0.0
    while (user := only_reader(end)) is not None and user not in excluded:
        scaled, active, added = factor_of(user), _activation(user), _addend(user, end, shapes)
        if scaled is not None and activation is Activation.NONE:
            factor *= scaled
        elif active is not None and activation is Activation.NONE:
            activation, slope = active
        elif added is not None:
            return Stem(layer, user, factor, activation, slope, added)
        else:
            break
        end = user
    stem = Stem(layer, end, factor, activation, slope)
    return _shuffled(stem, excluded) if shuffles else stem


def _shuffled(stem: Stem, excluded: frozenset[fx.Node]) -> Stem:
    """The stem with the pixel shuffle behind it, if the shuffle is the only reader of the stem."""
    user = only_reader(stem.end)
    if user is None or user in excluded or name_of(user) != "pixel_shuffle":
        return stem
    factor = argument(user, 1, "upscale_factor")
    return replace(stem, end=user, shuffle=factor) if isinstance(factor, int) else stem


def _activation(node: fx.Node) -> tuple[Activation, float] | None:
    name = name_of(node)
    if name == "relu":
        return Activation.LEAKY, 0.0
    if name == "leaky_relu":
        slope = argument(node, 1, "negative_slope", 0.01)
        return (Activation.LEAKY, float(slope)) if isinstance(slope, (int, float)) else None
    if name == "gelu" and argument(node, 1, "approximate", "none") == "none":
        return Activation.GELU, 0.0
    return None


def _addend(node: fx.Node, own: fx.Node, shapes: Shapes) -> fx.Node | None:
    """The other term of a sum of two tensors that have one shape at every size."""
    if name_of(node) not in ADD or len(node.args) != 2 or node.kwargs:
        return None
    others = [term for term in node.args if term is not own]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other = others[0]
    return other if shapes.same(other, own) and other.meta.get("dtype") == own.meta.get("dtype") else None


@dataclass(frozen=True)
class Use:
    """A quantizer that reads a value through moves and scalings: its node, and the product of the scalings."""

    quantizer: fx.Node
    factor: float


def uses(node: fx.Node, coded: frozenset[fx.Node]) -> list[Use] | None:
    """The quantizers that read a value through moves and scalings; None if anything else reads it too.

    Args:
        node: the node of the value.
        coded: the quantizers whose readers all take codes.
    """
    quantizers: list[Use] = []
    waiting = [(node, 1.0)]
    while waiting:
        source, factor = waiting.pop()
        for user in readers(source):
            scaled = factor_of(user)
            if user in coded:
                quantizers.append(Use(user, factor))
            elif scaled is not None:
                waiting.append((user, factor * scaled))
            elif is_move(user) and user.args[0] is source and user.all_input_nodes.count(source) == 1:
                waiting.append((user, factor))
            else:
                return None
    return quantizers or None


def arrivals(end: fx.Node, axes: tuple[int, ...], quantizer: fx.Node) -> Tensor | None:
    """The channel of each element that reaches a quantizer, found by carrying out the moves on the channel numbers.

    Args:
        end: the node of the value.
        axes: the axes of the value along which its channels lie, in ascending order; the last one is the fastest.
        quantizer: a quantizer that reads the value through moves and scalings.

    Returns:
        int64 of the shape of the quantizer's input; None where a move cannot be repeated at the size of the capture.
    """
    shape = end.meta["shape"]
    sizes = [shape[i] if i in axes else 1 for i in range(len(shape))]
    numbers = torch.arange(prod(sizes), dtype=torch.float32, device="cpu")  # the type that every move takes
    numbers = numbers.reshape(sizes)
    path: list[fx.Node] = []
    node = quantizer.all_input_nodes[0]
    while node is not end:
        path.append(node)
        node = node.all_input_nodes[0]
    moved = numbers.expand(shape)
    for node in reversed(path):
        if factor_of(node) is not None:
            continue
        rest = [source for source in node.all_input_nodes[1:] if "value" not in source.meta]
        if rest:
            return None
        source = node.all_input_nodes[0]
        moved = _call(node, {source: moved})
    return moved.long()


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """Carries out a move on `values`; sizes that the graph computes are the sizes of the capture."""
    args, kwargs = fx.node.map_arg(
        (node.args, dict(node.kwargs)), lambda n: values[n] if n in values else n.meta["value"]
    )
    if node.op == "call_method":
        name = "reshape" if node.target == "view" else str(node.target)
        return getattr(args[0], name)(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)
