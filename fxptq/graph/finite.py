"""Which of a network's own tensors hold NaN or infinite values that its graph computes with."""

from __future__ import annotations

from torch import Tensor

from fxptq.graph.constants import attribute
from fxptq.graph.program import Program

_OWN, _MADE = "model.", "constants."


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
