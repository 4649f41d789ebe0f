"""A quantized network on integer kernels: the last arrow of the way.

`lower` gives a module that is called as the network is, for every size the network takes. For each graph of the program
it holds the same graph on codes (rewrite.py); what is between the kernels is left to torch.compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxptq.graph.program import Program, Variant
from fxptq.kernels.build import Backend, backend
from fxptq.kernels.patterns import written
from fxptq.kernels.rewrite import Rewritten, rewrite


@dataclass(frozen=True)
class Lowering:
    """What became of the sites of a network.

    Attributes:
        backend: what runs the operators on the CPU.
        kernels: the operator that serves each site, by site name.
        simulated: quantized sites that still compute in float, with the reason.
    """

    backend: Backend
    kernels: dict[str, str]
    simulated: dict[str, str]


class IntegerModel(nn.Module):
    """A quantized network that computes in integers; see the module's description.

    Args:
        program: the network with its quantizers set. Later changes of it are not seen.
        compile: whether to hand what is between the kernels to torch.compile, where there is a compiler.

    Attributes:
        lowering: what became of the sites, in the first graph.
    """

    def __init__(self, program: Program, *, compile: bool = True) -> None:  # noqa: A002  # the name torch uses for it
        super().__init__()
        self.program = program
        self._compile = compile and backend().native
        self._lowered: dict[int, tuple[Variant, Rewritten]] = {}
        first = self.of(program.variants[0])
        self.lowering = Lowering(backend(), first.kernels, first.simulated)

    def forward(self, *inputs: Tensor) -> Any:
        """The network's output; inputs are the network's own."""
        with torch.no_grad():
            variant = self.program.variant(inputs)
            if any(node.op == "placeholder" for node in written(variant.inserted)):
                inputs = tuple(x.clone() for x in inputs)
            return self.of(variant).module(*inputs)

    def of(self, variant: Variant) -> Rewritten:
        """The lowered graph of a variant of the program."""
        found = self._lowered.get(id(variant))
        if found is None:
            with torch.no_grad():
                rewritten = rewrite(variant.inserted, self.program.holder)
            if self._compile:
                rewritten.module.compile(dynamic=False)
            found = self._lowered[id(variant)] = (variant, rewritten)  # the variant is kept: its id stays its own
        return found[1]


def lower(program: Program, *, compile: bool = True) -> IntegerModel:  # noqa: A002  # the name torch uses for it
    """The program on integer kernels; see `IntegerModel`."""
    return IntegerModel(program, compile=compile)
