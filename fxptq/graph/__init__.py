"""Networks as torch.fx graphs: capture, sites, plan, insertion, topology, and the program that runs them."""

from typing import TYPE_CHECKING, Any

from fxptq.lazy import attribute

if TYPE_CHECKING:
    from fxptq.bits import Bits
    from fxptq.graph.graphml import as_graphml
    from fxptq.graph.plan import Plan
    from fxptq.graph.program import Program, Variant
    from fxptq.graph.sites import Operand, Site

__all__ = ["Bits", "Operand", "Plan", "Program", "Site", "Variant", "as_graphml"]

_HOMES = {
    **dict.fromkeys(("Bits", "Plan"), "plan"),
    **dict.fromkeys(("Program", "Variant"), "program"),
    **dict.fromkeys(("Operand", "Site"), "sites"),
    "as_graphml": "graphml",
}


def __getattr__(name: str) -> Any:
    return attribute(__name__, _HOMES, name)
