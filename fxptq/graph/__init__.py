"""Networks as torch.fx graphs: capture, sites, plan, insertion, topology, and the program that runs them."""

from fxptq.graph.graphml import as_graphml
from fxptq.graph.plan import Bits, Plan
from fxptq.graph.program import Program, Variant
from fxptq.graph.sites import Operand, Site

__all__ = ["Bits", "Operand", "Plan", "Program", "Site", "Variant", "as_graphml"]
