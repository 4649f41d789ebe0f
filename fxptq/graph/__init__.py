"""Networks as torch.fx graphs: capture, sites, plan, insertion, topology, and the program that runs them."""

from fxptq.graph.plan import Bits, Plan
from fxptq.graph.program import Program, Variant
from fxptq.graph.sites import Operand, Site
from fxptq.graph.topology import write_graphml

__all__ = ["Bits", "Operand", "Plan", "Program", "Site", "Variant", "write_graphml"]
