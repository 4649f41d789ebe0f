"""The plan of a quantization: it takes a network's sites and gives them bits, ranges and quantizer keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, Protocol

from fxptq.bits import Bits
from fxptq.errors import InputError
from fxptq.graph.kinds import kind_named, quantizable
from fxptq.graph.parts import PARTS
from fxptq.graph.sites import Operand, Site
from fxptq.quant.scheme import UNIFORM, get_scheme

_GENERAL = frozenset(f"*.{name}" for name in ("input", "weight", "lhs", "rhs", *PARTS))
"""Patterns of all operands of a slot or part. They say nothing of one network, so they may match none."""


class Planner(Protocol):
    """Gives sites their bits and operands their quantizers: a `Plan`, or the stored plan of a checkpoint."""

    def apply(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """The same sites, planned."""
        ...


@dataclass(frozen=True)
class Plan:
    """The rules that give sites their bits.

    Attributes:
        bits: the bits of sites by default.
        kinds: the kinds of site to quantize; the others stay in float and are listed.
        granularity: ranges of a layer's weight: one per output channel, or per tensor (three for a fused qkv weight).
        edges: the bits of the sites that read the image, make the output, or belong to the trunk (see `Site.edge`);
            "float", or None for no exception.
        connective: the bits of a transformer's convolutions with a kernel larger than one value, which carry values
            between positions and join its stages; None for no exception. A network counts as a transformer if its
            linear layers and products do most of the work. In a network with products, convolutions 1x1 count as
            linear layers.
        overrides: (glob pattern of site names, bits or "float"), the first match wins.
        schemes: (glob pattern of `site.slot` or `site.part`, name of a scheme), the first match wins; operands that
            match none are uniform. Parts are the operands of attentions: query, key, attention and value. A pattern
            of all operands of a slot or part, such as `*.attention`, may match none.
    """

    bits: Bits
    kinds: tuple[str, ...] = field(default_factory=quantizable)
    granularity: Literal["channel", "tensor"] = "channel"
    edges: Bits | Literal["float"] | None = field(default_factory=lambda: Bits(8, 8))
    connective: Bits | None = field(default_factory=lambda: Bits(8, 8))
    overrides: tuple[tuple[str, Bits | Literal["float"]], ...] = ()
    schemes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(quantizable()))
        if unknown:
            raise InputError(f"unknown kind of site {unknown[0]!r}: expected some of {', '.join(quantizable())}")
        for _, scheme in self.schemes:
            get_scheme(scheme)

    def _bits_of(self, site: Site, *, transformer: bool) -> tuple[Bits | None, str]:
        if site.reason:
            return None, site.reason
        for pattern, bits in self.overrides:
            if fnmatchcase(site.name, pattern):
                return (None, f"left out by the pattern {pattern!r}") if isinstance(bits, str) else (bits, "")
        if site.kind not in self.kinds:
            return None, f"{site.kind} sites are left in float by the plan"
        if site.edge and self.edges is not None:
            in_float = f"{site.edge} of the network, left in float by the plan"
            return (None, in_float) if isinstance(self.edges, str) else (self.edges, "")
        if transformer and self.connective is not None and _slides(site):
            return self.connective, ""
        return self.bits, ""

    def apply(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Gives every site its bits, every operand its quantizer.

        Raises:
            InputError: an override that matches no site, or a pattern of schemes that matches no operand.
        """
        sites = tuple(sites)
        operands = [name for site in sites for operand in site.operands for name in _names(operand, site)]
        for patterns, what, names in (
            (self.overrides, "site", [site.name for site in sites]),
            (self.schemes, "operand", operands),
        ):
            for pattern, _ in patterns:
                if pattern not in _GENERAL and not any(fnmatchcase(name, pattern) for name in names):
                    raise InputError(f"the pattern {pattern!r} matches no {what}; `fxptq inspect` lists their names")
        transformer = _is_transformer(sites)
        keys: dict[tuple[object, ...], str] = {}
        planned = []
        for site in sites:
            bits, reason = self._bits_of(site, transformer=transformer)
            if bits is not None and all(operand.role == "constant" for operand in site.operands):
                bits, reason = None, "does not depend on the image"
            if bits is None:
                planned.append(replace(site, reason=reason))
                continue
            quantized: list[Operand] = []
            for operand in (self._operand(operand, site, bits) for operand in site.operands):
                key = keys.setdefault(_grid_of(operand), f"{site.name}.{operand.slot}")
                quantized.append(replace(operand, quantizer=key))
            planned.append(replace(site, operands=tuple(quantized), reason=""))
        return tuple(planned)

    def _operand(self, operand: Operand, site: Site, bits: Bits) -> Operand:
        """The operand with its bits, ranges and scheme."""
        width = bits.w if operand.slot == "weight" or operand.role == "constant" else bits.a
        names = _names(operand, site)
        matches = (scheme for pattern, scheme in self.schemes if any(fnmatchcase(name, pattern) for name in names))
        scheme = next(matches, UNIFORM)
        return replace(operand, bits=width, ranges=self._ranges(operand, site), scheme=scheme)

    def _ranges(self, operand: Operand, site: Site) -> int:
        if operand.slot != "weight" or operand.role != "constant":
            return 1
        if self.granularity == "channel":
            return site.shapes["weight"][operand.axis]
        return operand.parts


def _names(operand: Operand, site: Site) -> tuple[str, ...]:
    """The names of an operand in patterns: by its slot, and in an attention by its part."""
    return tuple(f"{site.name}.{name}" for name in (operand.slot, operand.part) if name)


def _grid_of(operand: Operand) -> tuple[object, ...]:
    """The identity of a quantizer: operands with equal identities share one quantizer and its result.

    The axis counts only where there are several ranges, because a weight that a convolution and a transposed
    convolution share has its outputs along different axes. A tensor that is overwritten between two sites counts as
    two tensors.
    """
    axis = operand.axis if operand.ranges > 1 else None
    return operand.source, operand.version, operand.bits, operand.ranges, axis, operand.scheme


def _is_transformer(sites: Sequence[Site]) -> bool:
    """Whether linear layers and products do more multiplications than convolutions.

    Networks write the linear layers of an MLP or an attention as convolutions 1x1 when their tensors are [B, C, H, W].
    So these count as linear layers, but only beside products: networks of convolutions have them, too.
    """
    attends = any(kind_named(site.kind).is_product for site in sites)
    work = {False: 0, True: 0}
    for site in sites:
        work[_slides(site) if attends else kind_named(site.kind).is_convolution] += site.macs
    return work[False] > work[True]


def _slides(site: Site) -> bool:
    """Whether it is a convolution with a kernel larger than one value."""
    return kind_named(site.kind).is_convolution and math.prod(site.shapes["weight"][2:]) > 1
