"""Plans the rewriting of an inserted graph: its sites, the calls to fuse with them, and the values that become codes.

`Survey` changes nothing. patterns.py recognizes one structure at a node. `Survey` finds all structures of a graph,
chooses among those that overlap, and gives the reason for every site that stays simulated.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxptq.graph.calls import argument, name_of
from fxptq.graph.constants import attribute
from fxptq.graph.kinds import kind_named
from fxptq.graph.program import Variant
from fxptq.graph.sites import Site
from fxptq.kernels import patterns
from fxptq.kernels.attentions import AttentionPattern, attention_of
from fxptq.kernels.backend import Backend, FusedLayer, Product, Served
from fxptq.kernels.destination import Target, target_of
from fxptq.kernels.maps import LayerMap, layer_map
from fxptq.kernels.patterns import Stem
from fxptq.kernels.products import ProductMap, product_map
from fxptq.kernels.shapes import Shapes
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import Quantizer
from fxptq.refusal import Refusal


class Survey:
    """The plan for rewriting one graph.

    Args:
        variant: a graph with quantizers, and its sites.
        holder: the module whose tensors the graph reads.
        backend: decides which sites are computed on codes, and how.

    Attributes:
        written: nodes whose memory some call writes into.
        shapes: the shapes of the graph's values, at several sizes of the input.
        sites: nodes that are computed on codes, and how the back end does it.
        simulated: the other quantized sites by name, with the reason.
        coded: quantizers whose readers all take codes.
        attentions: whole attentions by their last node.
        stems: layers with the calls that are fused with them, by their last node.
        targets: the nodes whose operator makes codes, with the codes that it makes.
        skipped: nodes inside an attention or a stem, whose values are never stored.
    """

    def __init__(self, variant: Variant, holder: nn.Module, backend: Backend) -> None:
        self.graph, self.holder, self._backend = variant.inserted, holder, backend
        self._site_of = {site.name: site for site in variant.sites}
        self.simulated: dict[str, str] = {}
        self.written = patterns.written(self.graph)
        self.shapes = Shapes(variant, holder)
        self.sites = self._find_sites()
        self.coded = frozenset(
            source
            for site in self.sites
            for source in site.args[:2]
            if isinstance(source, fx.Node) and all(user in self.sites for user in source.users)
        )
        self.attentions = self._find_attentions()
        self.stems = self._find_stems()
        self.targets = self._find_targets()
        self.skipped = self._find_skipped()

    def is_product(self, node: fx.Node) -> bool:
        """Whether a node is a product of activations that is computed on codes."""
        return isinstance(self.sites.get(node), Product)

    def is_fused(self, layer: fx.Node) -> bool:
        """Whether one operator computes a layer together with the calls after it."""
        return isinstance(self.sites.get(layer), FusedLayer)

    def site(self, node: fx.Node) -> Site:
        """The site of a node."""
        return self._site_of[node.meta["site"]]

    def _find_sites(self) -> dict[fx.Node, Served]:
        found = {}
        for node in self.graph.nodes:
            name = node.meta.get("site")
            if name is None or not any(self._is_quantizer(source) for source in node.all_input_nodes):
                continue
            served = self._served(node)
            if isinstance(served, Refusal):
                self.simulated[name] = served.reason
            else:
                found[node] = served
        return found

    def _is_quantizer(self, node: object) -> bool:
        return isinstance(node, fx.Node) and "quantizer" in node.meta

    def quantizer(self, node: fx.Node) -> Quantizer:
        """The quantizer that a quantizer node calls."""
        module: Quantizer = attribute(self.holder, str(node.target))
        return module

    def coding(self, node: object) -> Coding:
        """The coding of a quantizer node."""
        assert isinstance(node, fx.Node)  # noqa: S101  # a quantizer node, as _served made sure
        coding = self.quantizer(node).coding()
        assert not isinstance(coding, Refusal)  # noqa: S101  # likewise
        return coding

    def constant(self, node: object) -> Tensor | None:
        """The tensor that a get_attr node reads; None for any other node."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        tensor: Tensor = attribute(self.holder, str(node.target))
        return tensor.detach()

    def _served(self, node: fx.Node) -> Served | Refusal:
        """The way to compute a site, or the first reason against it: from the graph, or from the back end."""
        site = self.site(node)
        if site.operands and name_of(node) != site.kind:
            return Refusal(f"no integer kernel for {name_of(node)}")
        codings: dict[str, Coding] = {}
        for operand, factor in zip(site.operands, node.args, strict=False):
            of_factor = self._coding(factor)
            if isinstance(of_factor, Refusal):
                return of_factor
            codings[operand.slot] = of_factor
        obstacle = ""
        if "weight" in codings:
            obstacle = self._weight_obstacle(node.args[1], codings["weight"].grids) or self._bias_obstacle(node)
        if obstacle:
            return Refusal(obstacle)
        served = self._backend.serves(site, {slot: coding.grids for slot, coding in codings.items()})
        if isinstance(served, Refusal) or all(coding.is_plain for coding in codings.values()):
            return served
        return self._map_refusal(site, codings) or served

    def _map_refusal(self, site: Site, codings: Mapping[str, Coding]) -> Refusal | None:
        """Why the maps of a site, or its shares, cannot be computed on codes; None if they can."""
        if not self._backend.maps:
            return Refusal("this back end carries no maps and no shares")
        found: LayerMap | ProductMap | Refusal
        if "weight" in codings:
            found = layer_map(codings["weight"], codings["input"], site.shapes["weight"], site.geometry)
        else:
            found = product_map(codings["lhs"], codings["rhs"])
        return found if isinstance(found, Refusal) else None

    def _coding(self, factor: object) -> Coding | Refusal:
        """The coding of a factor of a site."""
        if not isinstance(factor, fx.Node) or not self._is_quantizer(factor):
            return Refusal("one factor is in float")
        quantizer = self.quantizer(factor)
        if quantizer.mode != "on":
            return Refusal("a quantizer is off")
        coding = quantizer.coding()
        return Refusal(f"{quantizer.scheme}: {coding.reason}") if isinstance(coding, Refusal) else coding

    def _weight_obstacle(self, factor: object, grids: tuple[Grid, ...]) -> str:
        """Why a weight cannot be taken as codes ahead of time; empty if it can."""
        assert isinstance(factor, fx.Node)  # noqa: S101  # it has grids
        weight = self.constant(factor.all_input_nodes[0])
        if weight is None:
            return "the weight is computed from the image"
        if any(grid.scale == 0 for grid in grids) and not _codes_hold(self.quantizer(factor), weight):
            return "a range of the weight has zero width"
        return ""

    def _bias_obstacle(self, node: fx.Node) -> str:
        """Why a bias cannot be added to sums of codes; empty if it can."""
        given = argument(node, 2, "bias")
        if given is None:
            return ""
        bias = self.constant(given)
        if bias is None:
            return "the bias is computed from the image"
        return "" if bool(bias.isfinite().all()) else "the bias holds NaN or infinite values"

    def _find_attentions(self) -> dict[fx.Node, AttentionPattern]:
        products = frozenset(node for node in self.sites if self.is_product(node))
        found: dict[fx.Node, AttentionPattern] = {}
        for node in self.graph.nodes:
            pattern = attention_of(node, products, self.shapes) if node in products else None
            # Nodes that some in-place call writes into cannot vanish inside the fused operator.
            if pattern is not None and not pattern.inner & self.written and self._carries(pattern):
                found[node] = pattern
        return found

    def product(self, node: fx.Node) -> ProductMap:
        """The operands of a product that is computed on codes, in the form of the operators."""
        found = product_map(*(self.coding(factor) for factor in node.args[:2]))
        assert not isinstance(found, Refusal)  # noqa: S101  # _served has asked
        return found

    def _carries(self, pattern: AttentionPattern) -> bool:
        """Whether the fused operator has the maps of an attention: by head, and of the value by column too."""
        weights, mix = self.coding(pattern.probabilities), self.product(pattern.mix)
        return self.product(pattern.scores).is_by_head and mix.row_term is None and (weights.is_plain or weights.shares)

    def _find_stems(self) -> dict[fx.Node, Stem]:
        """The stems by their last node."""
        stems: dict[fx.Node, Stem] = {}
        for node in self.graph.nodes:
            if node not in self.sites or self.is_product(node):
                continue
            bare = node in self.written or not self.is_fused(node)
            geometry = self.site(node).geometry
            whole = geometry is None or geometry.groups == 1  # the order of a group's outputs is that of its inputs
            stem = Stem(node, node) if bare else patterns.stem_of(node, self.shapes, self.written, shuffles=whole)
            # If two layers are summed, the stem of the later layer has the sum, and the earlier layer is the residual.
            if stem.end in stems:
                earlier = stems.pop(stem.end)
                stems[earlier.layer] = Stem(earlier.layer, earlier.layer)
            stems[stem.end] = stem
        return stems

    def _find_targets(self) -> dict[fx.Node, Target]:
        """The nodes whose operator makes codes, with the codes that it makes."""
        found: dict[fx.Node, Target] = {}
        for node in self.graph.nodes:
            stem = self.stems.get(node)
            encodes = node in self.attentions or self._is_plain_layer_norm(node)
            if not (encodes or (stem is not None and self.is_fused(stem.layer))) or node in self.written:
                continue
            uses = patterns.uses(node, self.coded)
            if uses is None:
                continue
            target = target_of(node, self._channel_axes(node), [(use, self.coding(use.quantizer)) for use in uses])
            if target is not None and self._makes(node, target):
                found[node] = target
        return found

    def _makes(self, node: fx.Node, target: Target) -> bool:
        """Whether the operator of a node can make these codes."""
        return node in self.stems or target.is_even

    def _channel_axes(self, node: fx.Node) -> tuple[int, ...]:
        """The axes of a node's value along which each channel may have numbers of its own."""
        last = len(node.meta["shape"]) - 1
        if node in self.attentions:
            return 1, last
        stem = self.stems.get(node)
        return (last,) if stem is None else (last + 1 + (kind_named(self.site(stem.layer).kind).channel_axis or 0),)

    def _is_plain_layer_norm(self, node: fx.Node) -> bool:
        if name_of(node) != "layer_norm" or node.op != "call_function" or node.meta.get("dtype") != torch.float32:
            return False
        shape = argument(node, 1, "normalized_shape")
        parameters = (argument(node, 2, "weight"), argument(node, 3, "bias"))
        constant = all(p is None or (isinstance(p, fx.Node) and p.op == "get_attr") for p in parameters)
        return constant and isinstance(shape, (tuple, list)) and len(shape) == 1 and isinstance(shape[0], int)

    def _find_skipped(self) -> frozenset[fx.Node]:
        """The nodes inside an attention or a stem, whose values are never stored."""
        skipped: set[fx.Node] = set()
        for pattern in self.attentions.values():
            skipped |= pattern.inner
        for stem in self.stems.values():
            node = stem.layer
            while node is not stem.end:
                skipped.add(node)
                node = next(iter(node.users))
        return frozenset(skipped)


def _codes_hold(quantizer: Quantizer, weight: Tensor) -> bool:
    """Whether the codes of a weight decode to its quantized values, also in ranges of zero width."""
    with torch.no_grad():
        return torch.equal(quantizer.decode(quantizer.encode(weight)), quantizer(weight))
