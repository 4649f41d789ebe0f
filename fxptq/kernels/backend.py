"""The interface of back ends. A back end says which sites it computes on codes, and how, and it installs its kernels.

A back end is a subclass of `Backend` under `@register("name")`. Adding one is adding a file to fxptq/kernels/backends,
or, from another package, an entry point in the group `fxptq.backends`. A back end refuses a site that it cannot compute
and gives the reason. Such a site computes in float as the simulation does and is listed by name (`Lowering.simulated`).
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
"""The grids of a site's operands, by slot. An operand has one grid for each of its ranges."""


@dataclass(frozen=True)
class Installed:
    """The implementation that runs the integer operators of a back end on this machine.

    Attributes:
        name: `avx512-vnni`, `avx2-vnni`, `avx2` or `generic` for compiled kernels on the CPU, `triton` on a GPU;
            `torch` for plain torch.
        reason: why the operators run in plain torch; empty otherwise.
        digest: tells the kernels from others of that name; empty where the version of fxptq does.
    """

    name: str
    reason: str = ""
    digest: str = ""

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
    """A set of integer operators for one kind of processor.

    Attributes:
        name: the name that the class is registered under.
        device: the type of the torch.device whose networks use this back end by default; "" for none.
        maps: whether its operators carry maps and shares (fxptq.quant.coding); other back ends see no site that has
            them, because the grids do not say everything there.
    """

    name: ClassVar[str] = ""
    device: ClassVar[str] = ""
    maps: bool = False

    @abstractmethod
    def install(self) -> Installed:
        """Installs the kernels behind the operators, once a process, and says which implementation runs them."""

    @abstractmethod
    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        """How a site is computed, or the reason to leave it to the simulation.

        Args:
            site: a planned site, with the shapes, types and geometry of the captured graph.
            grids: the grids of the site's operands.
        """

    def operator(self, name: str) -> Callable[..., Tensor]:
        """The function that a graph calls for an integer operator: `torch.ops.fxptq.<name>`, on the installed kernels.

        Args:
            name: the name of the operator, such as `conv2d`.
        """
        overload: Callable[..., Tensor] = getattr(torch.ops.fxptq, name).default
        return overload


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
        InputError: if no back end or two have that name, or the package cannot be imported.
    """
    return _BACKENDS.get(name)()


def backend_for(device: torch.device) -> Backend:
    """The bundled back end for networks on a device. A device without a back end of its own gets that of the CPU."""
    by_device = {cls.device: cls for cls in _BACKENDS.bundled().values() if cls.device}
    return by_device.get(device.type, by_device["cpu"])()
