"""The sites of a network: its linear, convolution and product calls, with stable names, roles and costs.

A site is named by its module path (`layers.0.attn.qkv`); calls of functions get an ordinal (`layers.0.attn.matmul_0`).
Calls that do arithmetic and cannot be quantized are sites too, so that they are listed by name and reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import fx

from fxptq.graph.calls import is_custom_operator, name_of
from fxptq.graph.functions import writes
from fxptq.graph.fused import fused_parts, leading_to_products
from fxptq.graph.geometry import Geometry
from fxptq.graph.kinds import OTHER, Kind, Slot, kind_of, layers
from fxptq.graph.parts import Part, attention_parts
from fxptq.graph.roles import Role, one_sided_values, role_of
from fxptq.graph.topology import skeleton
from fxptq.graph.tracer import IMAGE
from fxptq.quant.scheme import UNIFORM

Edge = Literal["", "head", "tail", "trunk"]

_COLOUR = 16
"""A layer with up to this many weights only shifts or mixes colours."""


@dataclass(frozen=True)
class Operand:
    """One factor of a site.

    Attributes:
        slot: input or weight of a layer; lhs or rhs of a product.
        source: the graph node that it reads.
        role: symmetric, one-sided (most values at the lower end), or constant (does not depend on the image).
        lowest: the exact floor of a one-sided operand, when the graph shows it.
        axis: the output axis of a weight, along which it may have several ranges.
        parts: number of layers that are fused in the weight, as contiguous parts along the axis: 3 for a qkv weight.
        ranges: number of ranges of its quantizer: 1 per tensor, `parts`, or one per output channel.
        bits: its bit width; None in float.
        scheme: the name of its quantizer's scheme (fxptq.quant.scheme).
        quantizer: the key of its quantizer; empty in float. Operands that read one tensor at one width share it.
        version: for memory that calls write into, a number that differs when such a call stands between two reads.
        part: its part in an attention: query, key, attention (the weights behind the softmax) or value; "" elsewhere.
    """

    slot: Slot
    source: str
    role: Role = "symmetric"
    lowest: float | None = None
    axis: int = 0
    parts: int = 1
    ranges: int = 1
    bits: int | None = None
    scheme: str = UNIFORM
    quantizer: str = ""
    version: int = 0
    part: Part = ""


@dataclass(frozen=True)
class Site:
    """One call that multiplies and adds.

    Attributes:
        name: its module path, with an ordinal for calls of functions.
        kind: the name of its row in `fxptq.graph.kinds.KINDS`.
        node: its node in the graph.
        operands: its factors, in the order of the call.
        shapes: the shape of each operand by slot, and of `output`, at the example's size.
        macs: multiply-accumulates at the example's size.
        edge: `head`: no other site stands before it. `tail`: no other site stands behind it. `trunk`: it is on the path
            of every signal, outside all residual branches except the longest. No skip connection carries the signal
            past it, so its quantization error reaches the output undiminished.
        reason: the reason why it is left in float; empty when it is quantized.
        geometry: stride, padding, dilation and groups of a convolution; None for anything else, and for a convolution
            whose network computes a stride, padding or dilation from sizes.
        dtype: the type of its first factor, in which it computes.
    """

    name: str
    kind: str
    node: str
    operands: tuple[Operand, ...]
    shapes: dict[str, tuple[int, ...]]
    macs: int
    edge: Edge = ""
    reason: str = ""
    geometry: Geometry | None = None
    dtype: torch.dtype = torch.float32

    @property
    def role(self) -> Role:
        """The role of the first operand, which is an activation."""
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


def mean_bits(sites: Iterable[Site]) -> tuple[float, float]:
    """The average width of weights, by their number of values, and of activations, by multiply-accumulates.

    An average over nothing is 0.
    """
    weights: dict[str, tuple[float, float]] = {}
    activations: list[tuple[float, float]] = []
    for site in sites:
        for operand in site.operands:
            if operand.bits is None:
                continue
            if operand.slot == "weight" and operand.role == "constant":
                weights[operand.quantizer] = (operand.bits, math.prod(site.shapes[operand.slot]))
            else:
                activations.append((operand.bits, site.macs))
    means = [
        sum(bits * share for bits, share in widths) / (sum(share for _, share in widths) or 1)
        for widths in (list(weights.values()), activations)
    ]
    return means[0], means[1]


def _names(nodes: Iterable[fx.Node]) -> list[str]:
    """A name for each site, no two alike, even where the name of a module looks like the ordinal of a function."""
    nodes = list(nodes)
    paths = {node.meta.get("path", "") for node in nodes if _is_layer(node)}
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
        while name in names or (name in paths and name != path):
            name += "~"
        names[name] = None
    return list(names)


def _is_layer(node: fx.Node) -> bool:
    """Whether a call is the one call of a layer of torch's own; a layer that is the whole network has no path."""
    kind = kind_of(node)
    is_layer = kind is not None and kind.is_layer and issubclass(node.meta.get("module", object), layers())
    return is_layer and bool(node.meta.get("path", ""))


def find_sites(graph: fx.Graph) -> tuple[Site, ...]:
    """All sites of a captured graph, in the order of execution, in float.

    Args:
        graph: as captured; its nodes carry shapes and module paths.
    """
    found, version = [], 0
    for node in graph.nodes:
        version += node.op in ("call_function", "call_method") and writes(node.target, node.kwargs)
        kind = kind_of(node)
        if node.meta.get("follows") == IMAGE and (kind is not None or _is_hidden(node)):
            found.append((node, kind, version))
    names = _names(node for node, _, _ in found)
    flow = _Flow(_reaching(graph), leading_to_products(graph), one_sided_values(graph), attention_parts(graph))
    sites = [_site(node, kind, name, version, flow) for (node, kind, version), name in zip(found, names, strict=True)]
    return _with_edges(graph, sites)


@dataclass(frozen=True)
class _Flow:
    """Facts of each node that one pass over the whole graph finds.

    Attributes:
        reaching: the nodes whose values reach the output, and not only through a choice (argmin, topk, a comparison).
        to_products: see `fused.leading_to_products`.
        one_sided: see `roles.one_sided_values`.
        parts: see `parts.attention_parts`.
    """

    reaching: frozenset[fx.Node]
    to_products: frozenset[fx.Node]
    one_sided: Mapping[fx.Node, float | None]
    parts: Mapping[tuple[fx.Node, int], Part]


def _reaching(graph: fx.Graph) -> frozenset[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(user.op == "output" or (user in found and not _is_choice(user)) for user in node.users):
            found.add(node)
    return frozenset(found)


def _is_choice(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return isinstance(dtype, torch.dtype) and not dtype.is_floating_point and not dtype.is_complex


def _is_hidden(node: fx.Node) -> bool:
    """Whether the graph does not show the computation inside the call."""
    return node.op == "call_module" or is_custom_operator(node.target)


def _site(node: fx.Node, kind: Kind | None, name: str, version: int, flow: _Flow) -> Site:
    shapes = {"output": tuple(node.meta.get("shape", ()))}
    factors = kind.factors(node) if kind is not None else ()
    if kind is None or len(factors) != 2 or not all(isinstance(factor, fx.Node) for factor in factors):
        return Site(name, OTHER.name, node.name, (), shapes, 0, reason=_why_other(node, kind))
    by_slot = dict(zip(kind.slots, factors, strict=True))
    operands = tuple(_operand(node, kind, slot, source, version, flow) for slot, source in by_slot.items())
    shapes = {slot: tuple(source.meta["shape"]) for slot, source in by_slot.items()} | shapes
    reason = f"{name_of(node)}: {kind.reason}" if kind.reason else ""
    if "weight" in shapes and math.prod(shapes["weight"]) <= _COLOUR:
        reason = "a shift or mix of colours: nothing to gain, everything to lose"
    elif node not in flow.reaching:
        reason = "only chooses (argmin, topk, a comparison): errors would flip choices, and no gradient comes back"
    geometry = kind.geometry(node) if kind.geometry is not None else None
    macs = kind.macs(node, shapes)
    dtype = factors[0].meta.get("dtype", torch.float32)
    return Site(name, kind.name, node.name, operands, shapes, macs, reason=reason, geometry=geometry, dtype=dtype)


def _why_other(node: fx.Node, kind: Kind | None) -> str:
    """The reason why a call is listed without operands."""
    if node.op == "call_module":
        return "TorchScript hides what it computes"
    call = name_of(node)
    if kind is None:
        return f"{call}: a custom operator hides what it computes"
    return f"{call} of more than two factors" if kind.slots else f"{call}: {kind.reason}"


def _operand(node: fx.Node, kind: Kind, slot: Slot, source: fx.Node, version: int, flow: _Flow) -> Operand:
    role, lowest = role_of(source, flow.one_sided)
    operand = Operand(
        slot,
        source.name,
        role,
        lowest,
        version=version if source.meta.get("written") else 0,
        part=flow.parts.get((node, kind.slots.index(slot)), ""),
    )
    if slot != "weight" or kind.weight_axis is None:
        return operand
    parts = 1
    # Blocks of output channels are blocks of the weight where its first axis counts the outputs of all groups.
    if role == "constant" and kind.weight_axis == 0 and kind.channel_axis is not None:
        parts = fused_parts(node, kind.channel_axis, flow.to_products)
    return replace(operand, axis=kind.weight_axis, parts=parts)


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
    with_edges = []
    for site in sites:
        if site.reason:
            with_edges.append(site)
            continue
        node = nodes[site.node]
        inside: Edge = "trunk" if node.name in trunk else ""
        edge: Edge = "head" if not before[node] else "tail" if not behind[node] else inside
        with_edges.append(replace(site, edge=edge))
    return tuple(with_edges)
