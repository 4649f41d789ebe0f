"""How fast the integers of a network are beside its float form, on this machine: measured once, kept, and said.

Two questions are answered by timing, because no table knows every processor. Which sites are faster in the simulation
than on their kernel? They are left to the simulation (`Sparing`), with both times as the reason. And does the whole
network gain? `Pace` says so in one line. The answers are kept in the user's cache, so that the same machine gives the
same graph, and output, again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq._version import __version__
from fxptq.graph.program import Variant
from fxptq.graph.runnable import runnable
from fxptq.graph.sites import Site
from fxptq.io.measured import keep_record, read_record
from fxptq.kernels.backend import Backend, Grids, Installed, Served
from fxptq.kernels.rewrite import Rewritten
from fxptq.kernels.stopwatch import least_seconds, node_seconds
from fxptq.kernels.targets import processor_here
from fxptq.refusal import Refusal

MOST_PIXELS = 160 * 160
"""A larger input is not timed, since the float network may take minutes for it: the size that the graph was captured at
is timed in its place."""

_ALIKE = 4
"""Sizes that differ by less than this factor in their number of pixels have one pace."""

_MARGIN, _WORTH = 1.25, 1e-3
"""A kernel loses if it takes this many times as long as the simulation of its site, and so many seconds more."""

_log = logging.getLogger("fxptq")


@dataclass(frozen=True)
class Pace:
    """The times of one call on integers and in float.

    Attributes:
        shape: of the first input.
        threads: number of threads that torch used.
        kernels: the implementation of the operators, as in `Installed`.
        integer_ms: milliseconds on integers.
        float_ms: milliseconds of the network without quantizers, run by torch call by call.
    """

    shape: tuple[int, ...]
    threads: int
    kernels: str
    integer_ms: float
    float_ms: float

    @property
    def speed_up(self) -> float:
        """How many times as fast as float the integers are."""
        return self.float_ms / self.integer_ms

    @property
    def gains(self) -> bool:
        """Whether integers are faster than float."""
        return self.speed_up > 1.0

    def __str__(self) -> str:
        verdict = f"{self.speed_up:.1f} times as fast as" if self.gains else f"SLOWER ({self.speed_up:.2f}x) than"
        size = "x".join(map(str, self.shape))
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"integers are {verdict} float here: {self.integer_ms:.0f} against {self.float_ms:.0f} ms for {size} "
            f"({self.kernels} kernels, {threads})"
        )


class Sparing(Backend):
    """A back end that leaves some sites to the simulation.

    Args:
        inner: serves all other sites.
        reasons: why a site is left, by its name.
    """

    def __init__(self, inner: Backend, reasons: Mapping[str, str]) -> None:
        self._inner, self._reasons = inner, reasons
        self.maps = inner.maps

    def install(self) -> Installed:
        """See `Backend`."""
        return self._inner.install()

    def serves(self, site: Site, grids: Grids) -> Served | Refusal:
        """See `Backend`."""
        reason = self._reasons.get(site.name)
        return self._inner.serves(site, grids) if reason is None else Refusal(reason)

    def operator(self, name: str) -> Callable[..., Tensor]:
        """See `Backend`."""
        return self._inner.operator(name)


@dataclass(frozen=True)
class Setting:
    """What a measurement depends on apart from the graph.

    Attributes:
        installed: the kernels.
        device: where the network is.
        compiled: whether torch.compile runs what lies between the kernels.
    """

    installed: Installed
    device: torch.device
    compiled: bool

    def key(self, variant: Variant, what: str) -> str:
        """The name of a record."""
        sites = [
            (site.name, site.kind, sorted(site.shapes.items()), [operand.bits for operand in site.operands])
            for site in variant.sites
        ]
        digest = hashlib.sha256(f"{sites} {len(variant.inserted.nodes)}".encode()).hexdigest()
        where = f"{processor_here()} {self.device.type} {self.installed} {torch.get_num_threads()} {self.compiled}"
        return f"{what} {digest} {where} torch {torch.__version__} fxptq {__version__}"


def losers(
    variant: Variant,
    holder: nn.Module,
    whole: Rewritten,
    without: Callable[[Mapping[str, str]], Rewritten],
    setting: Setting,
) -> dict[str, str]:
    """The sites that are faster in the simulation than on their kernel, with both times as the reason.

    Args:
        variant: the graph, timed at the size it was captured at.
        holder: the module whose tensors the graph reads.
        whole: the graph on codes.
        without: makes the graph on codes, with some sites left to the simulation for a reason.
        setting: what the answer depends on.

    Returns:
        Reasons by name; empty where the network as a whole does not gain from leaving those sites.
    """
    key = setting.key(variant, "losers")
    known = read_record("losers", key)
    if known is not None:
        return {name: str(reason) for name, reason in known.items()}
    inputs = own_inputs(variant, setting.device)
    found = _slower_sites(
        whole, node_seconds(whole.module, inputs), node_seconds(runnable(holder, variant.inserted), inputs)
    )
    if found and _seconds(without(found), inputs, setting) >= _seconds(whole, inputs, setting):
        found = {}
    keep_record("losers", key, found)
    return found


def _slower_sites(
    whole: Rewritten, on_codes: Mapping[fx.Node, float], simulated: Mapping[fx.Node, float]
) -> dict[str, str]:
    """Compares each operator with the simulation of its sites: their calls and the quantizers that they read."""
    in_simulation: dict[str, float] = {}
    for node, seconds in simulated.items():
        if "site" in node.meta:
            quantizers = [source for source in node.all_input_nodes if "quantizer" in source.meta]
            in_simulation[node.meta["site"]] = seconds + sum(
                simulated.get(source, 0.0) / len(source.users) for source in quantizers
            )
    found: dict[str, str] = {}
    for node, seconds in on_codes.items():
        names = [name for name in node.meta.get("sites", ()) if name in in_simulation]
        rival = sum(in_simulation[name] for name in names)
        if names and seconds > max(_MARGIN * rival, rival + _WORTH):
            reason = f"slower on integers here: {1000 * seconds:.2f} ms against {1000 * rival:.2f} in float"
            found |= dict.fromkeys(names, f"{reason} ({whole.kernels[names[0]]})")
    return found


def _seconds(lowered: Rewritten, inputs: tuple[Tensor, ...], setting: Setting) -> float:
    return least_seconds(lambda: lowered.module.forward(*(x.clone() for x in inputs)), setting.device)


def own_inputs(variant: Variant, device: torch.device) -> tuple[Tensor, ...]:
    """Random inputs of the size that a graph was captured at."""
    g = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=g).to(device, dtype) for shape, dtype in variant.shapes)


def pace_of(
    variant: Variant,
    holder: nn.Module,
    integer: Callable[[tuple[Tensor, ...]], Any],
    inputs: tuple[Tensor, ...],
    setting: Setting,
) -> Pace:
    """Times a graph on integers and in float, unless that is known.

    Args:
        variant: the graph.
        holder: the module whose tensors the graph reads.
        integer: runs the graph on integers.
        inputs: the network's own.
        setting: what the answer depends on.
    """
    shape, threads = tuple(inputs[0].shape), torch.get_num_threads()
    key = setting.key(variant, f"pace {shape}")
    known = read_record("pace", key)
    if known is None or set(known) != {"integer_ms", "float_ms"}:
        in_float = runnable(holder, variant.capture.graph)
        known = {
            "integer_ms": 1000 * least_seconds(lambda: integer(tuple(x.clone() for x in inputs)), setting.device),
            "float_ms": 1000 * least_seconds(lambda: in_float(*(x.clone() for x in inputs)), setting.device),
        }
        keep_record("pace", key, known)
    pace = Pace(shape, threads, setting.installed.name, float(known["integer_ms"]), float(known["float_ms"]))
    _log.log(logging.INFO if pace.gains else logging.WARNING, "%s", pace)
    return pace


def gains_on_simulation(
    variant: Variant, holder: nn.Module, integer: Callable[[tuple[Tensor, ...]], Any], setting: Setting
) -> bool:
    """Whether a graph on integers takes no longer than in the simulation, at its own size; timed unless that is known.

    Args:
        variant: the graph.
        holder: the module whose tensors the graph reads.
        integer: runs the graph on integers.
        setting: what the answer depends on.
    """
    key = setting.key(variant, "simulation")
    known = read_record("pace", key)
    if known is None or set(known) != {"integer_ms", "simulated_ms"}:
        inputs, simulated = own_inputs(variant, setting.device), runnable(holder, variant.inserted)
        with torch.no_grad():
            known = {
                "integer_ms": 1000 * least_seconds(lambda: integer(tuple(x.clone() for x in inputs)), setting.device),
                "simulated_ms": 1000 * least_seconds(lambda: simulated(*(x.clone() for x in inputs)), setting.device),
            }
        keep_record("pace", key, known)
    return float(known["integer_ms"]) <= float(known["simulated_ms"])


def pixels(inputs: tuple[Tensor, ...]) -> int:
    """The number of pixels of the first input, of all its pictures."""
    shape = inputs[0].shape
    return prod(shape) // (shape[1] if len(shape) == 4 else 1)


def alike(one: int, other: int) -> bool:
    """Whether inputs of two numbers of pixels have one pace."""
    large = max(one, other) > MOST_PIXELS
    return min(one, other) > MOST_PIXELS if large else max(one, other) < _ALIKE * min(one, other)
