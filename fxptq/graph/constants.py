"""Two clean-ups of a traced graph: dead code is removed, and values that do not depend on the input are folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq.graph.functions import writes
from fxptq.graph.tracer import CONST


def eliminate_dead_code(graph: fx.Graph) -> None:
    """Removes calls whose results nobody reads, except calls that write in place."""
    graph.eliminate_dead_code(is_impure_node=_is_impure)


def _is_impure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    return node.op in ("call_function", "call_method") and writes(node.target, node.kwargs)


def fold_constants(graph: fx.Graph, root: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Computes the values that do not depend on the input, and lets the graph read the results.

    A tensor that took part and that other calls still read is marked by `meta["folded"]`.

    Args:
        graph: changed in place.
        root: the module whose tensors the graph reads.
        device: the device of the input.

    Returns:
        The results by their names under `constants.`, which the graph now reads.
    """
    values, readings = _constant_values(graph, root, device)
    folded: dict[str, Tensor] = {}
    ordinals: Counter[str] = Counter()
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op == "get_attr" and len(outside) < len(node.users):
            node.meta["folded"] = True
        if node.op == "get_attr" or not outside or not isinstance(value, Tensor):
            continue
        path = (node.meta.get("path") or "root").replace(".", "/")
        for reading, users in readings.get(node, [(value, outside)]):
            while True:
                name = f"{path}/folded_{ordinals[path]}"
                ordinals[path] += 1
                if not hasattr(root.constants, name):
                    break
            with graph.inserting_before(node):
                constant = graph.get_attr(f"constants.{name}")
            constant.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, constant)
            folded[name] = reading.detach()
    for node in reversed(values):
        if node.op.startswith("call") and not node.users:
            graph.erase_node(node)
    return folded


Readings = dict[fx.Node, list[tuple[Tensor, list[fx.Node]]]]
"""For each constant that is overwritten: its values one after the other, and the nodes that read each value."""


def _constant_values(graph: fx.Graph, root: nn.Module, device: torch.device) -> tuple[dict[fx.Node, Any], Readings]:
    values: dict[fx.Node, Any] = {}
    readings: Readings = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.target is getattr and node.args[1:] == ("device",):
                values[node] = device
            elif node.meta.get("follows") != CONST or not all(source in values for source in node.all_input_nodes):
                for source in node.all_input_nodes:
                    if source.meta.get("written") and isinstance(values.get(source), Tensor):
                        _read(readings.setdefault(source, []), values[source], node)
            elif node.op == "get_attr":
                values[node] = attribute(root, str(node.target))
            elif node.op.startswith("call"):
                values[node] = _call(node, root, values)
    return values, readings


def _read(readings: list[tuple[Tensor, list[fx.Node]]], value: Tensor, reader: fx.Node) -> None:
    """Notes that `reader` reads the present content of `value`."""
    if readings and torch.equal(readings[-1][0], value):
        readings[-1][1].append(reader)
    else:
        readings.append((value.clone(), [reader]))


def _call(node: fx.Node, root: nn.Module, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = attribute(root, str(node.target)) if node.op == "call_module" else node.target
    return function(*args, **kwargs)


def attribute(root: nn.Module, target: str) -> Any:
    """The tensor, module or other attribute at a dotted name of a module."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value
