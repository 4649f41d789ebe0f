"""Values that are not finite: in a network's own tensors, and in the values that it computes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxptq.graph.constants import attribute
from fxptq.graph.exclusive import CAPTURING
from fxptq.graph.program import Program
from fxptq.graph.randomness import OwnRandomNumbers

_OWN, _MADE = "model.", "constants."
_log = logging.getLogger("fxptq")


def damaged_tensor(program: Program) -> str:
    """What is wrong with the first such tensor, by its name; empty if all are sound.

    NaN is wrong wherever the graph reads it. An infinite value is wrong in a weight or bias of a site, which no integer
    can hold; elsewhere it may be meant, as in a mask of attention.

    Args:
        program: a captured network.
    """
    first = program.variants[0]
    sites = {site.node for site in first.sites}
    for node in first.capture.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = attribute(program.holder, str(node.target))
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        nan = bool(tensor.isnan().any())
        if nan or any(user.name in sites for user in node.users):
            target = str(node.target)
            made = ", which the network computes from its weights alone," if target.startswith(_MADE) else ""
            name = target.removeprefix(_OWN).removeprefix(_MADE)
            return f"{name}{made} holds {'NaN' if nan else 'infinite values'}"
    return ""


def warn_of_nan(program: Program, inputs: tuple[Tensor, ...], output: Any) -> None:
    """Says in one line if the output holds NaN and the inputs are finite, and where the first NaN comes from.

    Args:
        program: the network that was run.
        inputs: its inputs.
        output: its output for these inputs, simulated or of integers.
    """
    if _holds_nan(output) and all(bool(x.isfinite().all()) for x in inputs):
        _log.warning(
            "the network makes NaN of a finite input of shape %s%s", tuple(inputs[0].shape), _beginning(program, inputs)
        )


def _beginning(program: Program, inputs: tuple[Tensor, ...]) -> str:
    """The place of the first NaN of the simulation, as an addition to a message; empty if it makes none."""
    finding = _FirstNaN(program.holder, graph=program.variant(inputs).inserted)
    with CAPTURING, torch.no_grad(), OwnRandomNumbers():
        finding.run(*(x.clone() for x in inputs))
    node = finding.node
    if node is None:
        return ""
    return f": first at {node.meta.get('path') or node.name} ({node.meta.get('line', '?')})"


class _FirstNaN(fx.Interpreter):
    """Runs a graph and keeps the first node whose value holds NaN."""

    node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """The value of the node."""
        value = super().run_node(n)
        if self.node is None and _holds_nan(value):
            self.node = n
        return value


def _holds_nan(value: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() and bool(x.isnan().any()) for x in tree_leaves(value))
