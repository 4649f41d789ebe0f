"""What a back end is: it says which sites it can compute on codes, how, and why not; and it brings its kernels.

A back end is a subclass of `Backend` under `@register("name")`. Adding one is adding a file to fxptq/kernels/backends,
or, from another package, an entry point in the group `fxptq.backends`. Whatever it cannot do it refuses with a reason;
such a site computes in float as the simulation does and is listed by name (`Lowering.simulated`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fxptq.graph.sites import Site
from fxptq.kernels.layer import Layer
from fxptq.kernels.layouts import Packed
from fxptq.quant.grid import Grid
from fxptq.refusal import Refusal
from fxptq.registry import Registry

Grids = Mapping[str, tuple[Grid, ...]]
"""The grids of a site's operands, by slot; several for an operand with several ranges."""


@dataclass(frozen=True)
class Installed:
    """What runs the integer operators of a back end on this machine.

    Attributes:
        name: `avx512-vnni`, `avx2` or `generic` for compiled kernels on the CPU, `triton` on a GPU; `torch` for plain
            torch.
        reason: why it is plain torch; empty otherwise.
    """

    name: str
    reason: str = ""

    @property
    def native(self) -> bool:
        """Whether compiled kernels run."""
        return self.name != "torch"


@dataclass(frozen=True)
class FusedLayer:
    """A layer that one operator computes together with its scaling, activation, residual and output codes.

    Attributes:
        pack: chooses the operator for a layer and lays its weight out.
    """

    pack: Callable[[Layer], Packed]


@dataclass(frozen=True)
class FloatLayer:
    """A convolution computed by torch's own float convolution on codes held in floats, exactly; nothing is fused."""


@dataclass(frozen=True)
class Product:
    """A product of two activations, alone or as a part of a fused attention."""


Served = FusedLayer | FloatLayer | Product
"""How a back end computes a site."""


class Backend(ABC):
    """One way to run integers.

    Attributes:
        name: the name it is registered under.
        device: the type of the torch.device whose networks it takes by default; "" for none.
    """

    name: ClassVar[str] = ""
    device: ClassVar[str] = ""

    @abstractmethod
    def install(self) -> Installed:
        """Brings the kernels behind the operators, once a process, and says what runs them."""

    @abstractmethod
    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        """How a site is computed, or why it is left to the simulation.

        Args:
            site: planned, with the shapes, types and geometry of the captured graph.
            grids: of its operands.
        """

    def operator(self, name: str) -> Callable[..., Tensor]:
        """What a graph calls for an integer operator: `torch.ops.fxptq.<name>`, which the installed kernels serve."""
        found: Callable[..., Tensor] = getattr(torch.ops.fxptq, name).default
        return found


_BACKENDS: Registry[Backend] = Registry("back end", "fxptq.backends", "fxptq.kernels.backends")

B = TypeVar("B", bound=type[Backend])


def register(name: str) -> Callable[[B], B]:
    """Class decorator that makes a back end known under `name`.

    Raises:
        InputError: if the name is taken by another class; nothing is registered then.
    """

    def add(cls: B) -> B:
        _BACKENDS.add(name, cls)
        cls.name = name
        return cls

    return add


def backend_names() -> list[str]:
    """Names of all back ends, those of other packages too, sorted."""
    return _BACKENDS.names()


def get_backend(name: str) -> Backend:
    """The back end of that name.

    Raises:
        InputError: if there is none, two, or its package cannot be imported.
    """
    return _BACKENDS.get(name)()


def backend_for(device: torch.device) -> Backend:
    """The bundled back end for networks on a device; the CPU's for a device that has none of its own."""
    by_device = {cls.device: cls for cls in _BACKENDS.bundled().values() if cls.device}
    return by_device.get(device.type, by_device["cpu"])()
