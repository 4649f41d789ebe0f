"""The plan of a recipe's settings: which sites get quantizers, and of how many bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fxptq.bits import Bits, parse_bits
from fxptq.graph import Plan
from fxptq.recipe import QuantizeSettings


def plan_of(settings: QuantizeSettings, bits: Bits, sites: Mapping[str, Bits | Literal["float"]] | None = None) -> Plan:
    """The plan of a recipe's settings.

    Args:
        settings: the recipe's [quantize] table.
        bits: the bits of sites by default.
        sites: exceptions by glob pattern, before the recipe's own.
    """
    high = Bits(settings.high_bits, settings.high_bits)
    edges: dict[str, Bits | Literal["float"] | None] = {"high": high, "float": "float", "low": None}
    return Plan(
        bits,
        kinds=tuple(settings.kinds),
        granularity=settings.weight_granularity,
        edges=edges[settings.edges],
        connective=high if settings.connective == "high" else None,
        overrides=(
            *(sites or {}).items(),
            *((pattern, parse_bits(text)) for pattern, text in settings.sites.items()),
            *((pattern, high) for pattern in settings.high_sites),
        ),
        schemes=(("*", "zero_on_grid"),) if settings.zero_on_grid else tuple(settings.schemes.items()),
    )
