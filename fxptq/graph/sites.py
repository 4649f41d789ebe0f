"""Where the arithmetic of a network is: its linear, convolution and product calls, with stable names, roles and costs.

A site is named by its module path (`layers.0.attn.qkv`); calls of functions get an ordinal (`layers.0.attn.matmul_0`).
What does the arithmetic of a layer and has no quantizer is found too, so that it can be listed by name and reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import fx, nn

from fxptq.graph.calls import (
    ARITHMETIC,
    LAYOUT,
    LOWEST,
    MIXING,
    OTHER,
    PRODUCTS,
    WEIGHTED,
    argument,
    first_inputs,
    name_of,
)
from fxptq.graph.einsum import einsum_operands, summed_size
from fxptq.graph.functions import is_custom_operator
from fxptq.graph.fused import fused_ranges, leading_to_products
from fxptq.graph.geometry import Geometry, geometry_of
from fxptq.graph.topology import skeleton
from fxptq.graph.tracer import IMAGE
from fxptq.quant.scheme import UNIFORM

Kind = Literal["linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "matmul", "other"]
Slot = Literal["input", "weight", "lhs", "rhs"]
Role = Literal["symmetric", "one_sided", "constant"]

Edge = Literal["", "head", "tail", "trunk"]

KINDS: tuple[Kind, ...] = ("linear", "conv2d", "conv_transpose2d", "matmul")
"""The kinds that can be quantized."""

_COLOUR = 16
"""A layer of at most so many weights only shifts or mixes colours."""


@dataclass(frozen=True)
class Operand:
    """One factor of a site.

    Attributes:
        slot: input or weight of a layer; lhs or rhs of a product.
        source: the graph node it reads.
        role: symmetric, one-sided (most values at the lower end), or constant (does not depend on the image).
        lowest: the exact floor of a one-sided operand, when the graph shows it.
        axis: the output axis of a weight, along which it may have several ranges.
        ranges: how many contiguous ranges it naturally has along the axis: 3 for a fused qkv weight.
        groups: how many ranges its quantizer has: 1 per tensor, `ranges`, or one per output channel.
        bits: its bit width; None in float.
        scheme: the name of its quantizer's scheme (fxptq.quant.scheme).
        quantizer: the key of its quantizer; empty in float. Operands that read one tensor at one width share it.
    """

    slot: Slot
    source: str
    role: Role = "symmetric"
    lowest: float | None = None
    axis: int = 0
    ranges: int = 1
    groups: int = 1
    bits: int | None = None
    scheme: str = UNIFORM
    quantizer: str = ""


@dataclass(frozen=True)
class Site:
    """One place of arithmetic.

    Attributes:
        name: its module path, with an ordinal for calls of functions.
        kind: what it computes.
        node: its node in the graph.
        operands: its factors, in the order of the call.
        shapes: of each operand by slot, and of `output`, at the example's size.
        macs: multiply-accumulates at the example's size.
        dtype: what it computes in: the type of its first factor.
        geometry: how a convolution walks over its input; None for other kinds, and where padding is given by name.
        edge: `head` reads the image itself, `tail` makes the output: no other site stands before or behind
            it; `trunk` stands outside every residual branch but the longest, so that nothing makes up for its errors.
        reason: why it is left in float; empty when it is quantized.
    """

    name: str
    kind: Kind
    node: str
    operands: tuple[Operand, ...]
    shapes: dict[str, tuple[int, ...]]
    macs: int
    edge: Edge = ""
    reason: str = ""
    dtype: torch.dtype = torch.float32
    geometry: Geometry | None = None

    @property
    def role(self) -> Role:
        """The role of the first operand, the one the kernels read from the network."""
        return self.operands[0].role if self.operands else "symmetric"

    @property
    def bits(self) -> tuple[int | None, int | None]:
        """Bits of the weight (of the right factor for a product) and of the activation; None in float."""
        if not self.operands:
            return None, None
        return self.operands[-1].bits, self.operands[0].bits

    def operand(self, slot: Slot) -> Operand:
        """The operand of that slot; KeyError if the site has none."""
        for operand in self.operands:
            if operand.slot == slot:
                return operand
        raise KeyError(f"{self.name} has no {slot}")


@dataclass(frozen=True)
class _Flow:
    """What is known of each node from the whole graph, found in two passes over it.

    Attributes:
        roles: its role, and the floor of one-sided values.
        reaching: the nodes whose values reach the output otherwise than by a choice made from them.
        to_products: see `fused.leading_to_products`.
    """

    roles: dict[fx.Node, tuple[Role, float | None]]
    reaching: frozenset[fx.Node]
    to_products: frozenset[fx.Node]


def _flow(graph: fx.Graph) -> _Flow:
    floors: dict[fx.Node, _Floors] = {}
    roles: dict[fx.Node, tuple[Role, float | None]] = {}
    for node in graph.nodes:
        floors[node] = _floors(node, floors)
        image = node.meta.get("follows") == IMAGE
        roles[node] = _role(floors[node]) if image else ("constant", None)
    reaching: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(user.op == "output" or (user in reaching and not _is_choice(user)) for user in node.users):
            reaching.add(node)
    return _Flow(roles, frozenset(reaching), leading_to_products(graph))


_Floors = frozenset[float | None] | None
"""The floors of the calls that made a node's values, looking through those that move them; None if one has no floor."""


def _floors(node: fx.Node, known: dict[fx.Node, _Floors]) -> _Floors:
    name = name_of(node)
    overshoots = node.kwargs.get("mode") == "bicubic"
    if not (name in LAYOUT or (name in MIXING and not overshoots)):
        return frozenset((LOWEST[name],)) if name in LOWEST else None
    found: set[float | None] = set()
    for source in first_inputs(node):
        floors = known[source]
        if floors is None:
            return None
        found |= floors
    return frozenset(found)


def _role(floors: _Floors) -> tuple[Role, float | None]:
    if not floors:
        return "symmetric", None
    return "one_sided", None if None in floors else min(floor for floor in floors if floor is not None)


def _factors(node: fx.Node) -> list[tuple[Slot, fx.Node]] | None:
    """The factors of a product or layer; None when there are not two of them."""
    if name_of(node) in WEIGHTED:
        pair = [argument(node, 0, "input"), argument(node, 1, "weight")]
    elif name_of(node) == "einsum":
        pair = list(einsum_operands(node))
    else:
        pair = [argument(node, 0, "input"), argument(node, 1, "other")]
    if len(pair) != 2 or not all(isinstance(item, fx.Node) for item in pair):
        return None
    slots: tuple[Slot, Slot] = ("input", "weight") if name_of(node) in WEIGHTED else ("lhs", "rhs")
    return list(zip(slots, pair, strict=True))


def _macs(node: fx.Node, kind: Kind, shapes: dict[str, tuple[int, ...]]) -> int:
    out = math.prod(shapes["output"])
    if kind == "linear":
        return out * shapes["weight"][-1]
    if kind.startswith("conv_transpose"):
        return math.prod(shapes["input"]) * math.prod(shapes["weight"][1:])
    if kind.startswith("conv"):
        return out * math.prod(shapes["weight"][1:])
    if name_of(node) == "einsum":
        return out * summed_size(node, (shapes["lhs"], shapes["rhs"]))
    return out * shapes["lhs"][-1]


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _names(nodes: Iterable[fx.Node]) -> list[str]:
    """A name for each site, no two alike, even where a module is called as the ordinal of a function would be."""
    nodes = list(nodes)
    layers = {node.meta.get("path", "") for node in nodes if _is_layer(node)}
    count: Counter[str] = Counter()
    names: dict[str, None] = {}
    for node in nodes:
        path = node.meta.get("path", "")
        if _is_layer(node):
            count[path] += 1
            name = path if count[path] == 1 else f"{path}@{count[path]}"
        else:
            stem = f"{path}.{name_of(node) or 'scripted'}".lstrip(".")
            name = f"{stem}_{count[stem]}"
            count[stem] += 1
        while name in names or (name in layers and name != path):
            name += "~"
        names[name] = None
    return list(names)


def _is_layer(node: fx.Node) -> bool:
    return issubclass(node.meta.get("module", object), _LAYERS) and (name_of(node) or "scripted") in WEIGHTED


def find_sites(graph: fx.Graph) -> tuple[Site, ...]:
    """All sites of a captured graph, in the order of execution, in float.

    Args:
        graph: as captured; its nodes carry shapes and module paths.
    """
    found = [node for node in graph.nodes if node.meta.get("follows") == IMAGE and _is_arithmetic(node)]
    flow = _flow(graph)
    sites = [_site(node, name, flow) for node, name in zip(found, _names(found), strict=True)]
    return _with_edges(graph, sites)


def _is_arithmetic(node: fx.Node) -> bool:
    if name_of(node) == "einsum" and len(einsum_operands(node)) == 1:
        return False  # a transposition or a sum
    return name_of(node) in ARITHMETIC or _is_hidden(node)


def _is_choice(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return isinstance(dtype, torch.dtype) and not dtype.is_floating_point and not dtype.is_complex


def _is_hidden(node: fx.Node) -> bool:
    """Whether nobody can see what is computed inside."""
    return node.op == "call_module" or is_custom_operator(node.target)


def _site(node: fx.Node, name: str, flow: _Flow) -> Site:
    call, shapes = name_of(node), {"output": tuple(node.meta.get("shape", ()))}
    factors = _factors(node) if call in WEIGHTED or call in PRODUCTS else None
    if factors is None:
        reason = f"{call}: no quantizer for this operation"
        if call in PRODUCTS:
            reason = f"{call} of more than two factors"
        elif node.op == "call_module":
            reason = "TorchScript hides what it computes"
        elif call not in OTHER:
            reason = f"{call}: a custom operator hides what it computes"
        return Site(name, "other", node.name, (), shapes, 0, reason=reason)
    kind = cast("Kind", call) if call in WEIGHTED else "matmul"
    shapes = {slot: tuple(source.meta["shape"]) for slot, source in factors} | shapes
    operands = tuple(_operand(node, kind, slot, source, flow) for slot, source in factors)
    reason = "" if kind in KINDS else f"{kind}: no quantizer for this operation"
    if "weight" in shapes and math.prod(shapes["weight"]) <= _COLOUR:
        reason = "a shift or mix of colours: nothing to gain, everything to lose"
    elif node not in flow.reaching:
        reason = "only chooses (argmin, topk, a comparison): errors would flip choices, and no gradient comes back"
    dtype = factors[0][1].meta.get("dtype", torch.float32)
    by_name = kind.startswith("conv") and isinstance(argument(node, 4, "padding"), str)
    geometry = geometry_of(node) if kind in ("conv2d", "conv_transpose2d") and not by_name else None
    return Site(
        name,
        kind,
        node.name,
        operands,
        shapes,
        _macs(node, kind, shapes),
        reason=reason,
        dtype=dtype,
        geometry=geometry,
    )


def _operand(node: fx.Node, kind: Kind, slot: Slot, source: fx.Node, flow: _Flow) -> Operand:
    role, lowest = flow.roles[source]
    axis = 1 if slot == "weight" and kind == "conv_transpose2d" else 0
    ranges = (
        fused_ranges(node, flow.to_products)
        if slot == "weight" and role == "constant" and kind in ("linear", "conv2d")
        else 1
    )
    return Operand(slot, source.name, role, lowest, axis, ranges)


def _with_edges(graph: fx.Graph, sites: list[Site]) -> tuple[Site, ...]:
    by_node = {site.node: site for site in sites if not site.reason}
    before: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        before[node] = any(before[source] or source.name in by_node for source in node.all_input_nodes)
    behind: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        behind[node] = any(behind[user] or user.name in by_node for user in node.users)
    nodes = {node.name: node for node in graph.nodes}
    trunk = skeleton(graph).trunk
    found = []
    for site in sites:
        if site.reason:
            found.append(site)
            continue
        node = nodes[site.node]
        inside: Edge = "trunk" if node.name in trunk else ""
        edge: Edge = "head" if not before[node] else "tail" if not behind[node] else inside
        found.append(replace(site, edge=edge))
    return tuple(found)
