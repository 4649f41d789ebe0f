"""What there is to rewrite in an inserted graph: sites, what goes with them in one go, and which values become codes.

Nothing is changed here. patterns.py knows what a structure looks like; this module finds each of them, settles which of
those that overlap is taken, and says of every site that stays simulated why.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from fxptq.kernels.ops import Activation
from fxptq.kernels.patterns import Stem
from fxptq.kernels.shapes import Shapes
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import Quantizer
from fxptq.refusal import Refusal


@dataclass(frozen=True)
class Target:
    """The grid a value goes onto, and the factor between the two: code = value * scale + grid.zero_point."""

    grid: Grid
    factor: float

    @property
    def scale(self) -> float:
        """Of the value, in units of the grid's own."""
        return self.factor / self.grid.scale


class Survey:
    """What a graph holds for the rewriter.

    Args:
        variant: a graph with quantizers, and its sites.
        holder: what the graph reads.
        backend: decides which sites are computed on codes, and how.

    Attributes:
        written: nodes whose memory some call writes into.
        shapes: of the graph's values, at more sizes than one.
        sites: nodes that are computed on codes, and how the back end does it.
        simulated: the other quantized sites by name, with the reason.
        coded: quantizers whose readers all take codes.
        attentions: whole attentions by their last node.
        stems: layers with what follows them, by their last node.
        targets: values that are made as codes: for each, the target of each quantizer that reads it.
        skipped: nodes inside an attention or a stem, whose values never exist.
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
        """Whether one operator computes a layer together with what follows it."""
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
        """What a quantizer node calls."""
        found: Quantizer = attribute(self.holder, str(node.target))
        return found

    def grid(self, node: object) -> Grid:
        """The grid of a quantizer node whose quantizer has one range."""
        assert isinstance(node, fx.Node)  # noqa: S101  # a quantizer node, as _served made sure
        found = self.quantizer(node).grids()
        assert not isinstance(found, Refusal)  # noqa: S101  # likewise
        return found[0]

    def constant(self, node: object) -> Tensor | None:
        """The tensor a get_attr node reads; None for any other."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        found: Tensor = attribute(self.holder, str(node.target))
        return found.detach()

    def _served(self, node: fx.Node) -> Served | Refusal:
        """How a site is computed: what the graph allows, and what the back end says."""
        site = self.site(node)
        if site.operands and name_of(node) != site.kind:
            return Refusal(f"no integer kernel for {name_of(node)}")
        grids: dict[str, tuple[Grid, ...]] = {}
        for operand, factor in zip(site.operands, node.args, strict=False):
            found = self._grids(factor)
            if isinstance(found, Refusal):
                return found
            grids[operand.slot] = found
        obstacle = ""
        if "weight" in grids:
            obstacle = self._weight_obstacle(node.args[1], grids["weight"]) or self._bias_obstacle(node)
        return Refusal(obstacle) if obstacle else self._backend.serves(site, grids)

    def _grids(self, factor: object) -> tuple[Grid, ...] | Refusal:
        """The grids of a factor of a site."""
        if not isinstance(factor, fx.Node) or not self._is_quantizer(factor):
            return Refusal("one factor is in float")
        quantizer = self.quantizer(factor)
        if quantizer.mode != "on":
            return Refusal("a quantizer is off")
        found = quantizer.grids()
        return Refusal(f"{quantizer.scheme}: {found.reason}") if isinstance(found, Refusal) else found

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
        bias = self.constant(argument(node, 2, "bias"))
        return "" if bias is None or bool(bias.isfinite().all()) else "the bias holds NaN or infinite values"

    def _find_attentions(self) -> dict[fx.Node, AttentionPattern]:
        products = frozenset(node for node in self.sites if self.is_product(node))
        found: dict[fx.Node, AttentionPattern] = {}
        for node in self.graph.nodes:
            pattern = attention_of(node, products, self.shapes) if node in products else None
            # Nodes that some in-place call writes into cannot vanish inside the fused operator.
            if pattern is not None and not pattern.inner & self.written:
                found[node] = pattern
        return found

    def _find_stems(self) -> dict[fx.Node, Stem]:
        """By their last node."""
        taken: dict[fx.Node, Stem] = {}
        for node in self.graph.nodes:
            if node not in self.sites or self.is_product(node):
                continue
            bare = node in self.written or not self.is_fused(node)
            stem = Stem(node, node) if bare else patterns.stem_of(node, self.shapes, self.written)
            # Two layers summed: the later one's stem takes the sum, the earlier one is its residual.
            if stem.end in taken:
                earlier = taken.pop(stem.end)
                taken[earlier.layer] = Stem(earlier.layer, earlier.layer)
            taken[stem.end] = stem
        return taken

    def _find_targets(self) -> dict[fx.Node, dict[fx.Node, Target]]:
        """Values that are made as codes: for each, the target of each quantizer that reads it."""
        found: dict[fx.Node, dict[fx.Node, Target]] = {}
        for node in self.graph.nodes:
            stem = self.stems.get(node)
            made = node in self.attentions or self._is_plain_layer_norm(node)
            if not (made or (stem is not None and self.is_fused(stem.layer))) or node in self.written:
                continue
            uses = patterns.uses(node, self.coded)
            if uses is None:
                continue
            targets = {use.quantizer: Target(self.grid(use.quantizer), use.factor) for use in uses}
            if len(set(targets.values())) == 1 or self.columns(node, targets) is not None:
                found[node] = targets
        return found

    def _is_plain_layer_norm(self, node: fx.Node) -> bool:
        if name_of(node) != "layer_norm" or node.op != "call_function" or node.meta.get("dtype") != torch.float32:
            return False
        shape = argument(node, 1, "normalized_shape")
        parameters = (argument(node, 2, "weight"), argument(node, 3, "bias"))
        constant = all(p is None or (isinstance(p, fx.Node) and p.op == "get_attr") for p in parameters)
        return constant and isinstance(shape, (tuple, list)) and len(shape) == 1 and isinstance(shape[0], int)

    def columns(self, end: fx.Node, targets: dict[fx.Node, Target]) -> dict[Target, list[int]] | None:
        """The channels of a bare layer by the target they go to, if each goes to one."""
        stem = self.stems.get(end)
        if stem is None or stem.activation is not Activation.NONE or stem.residual is not None or stem.shuffle > 1:
            return None
        axis = len(end.meta["shape"]) + (kind_named(self.site(stem.layer).kind).channel_axis or 0)
        found: dict[Target, set[int]] = {}
        for quantizer, target in targets.items():
            channels = patterns.arrivals(end, axis, quantizer)
            if channels is None:
                return None
            found.setdefault(target, set()).update(channels)
        if sum(len(channels) for channels in found.values()) != len(set().union(*found.values())):
            return None
        return {target: sorted(channels) for target, channels in found.items()}

    def _find_skipped(self) -> frozenset[fx.Node]:
        """Nodes inside an attention or a stem, whose values never exist."""
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
    """Whether the codes of a weight give its quantized values back, also in ranges of zero width."""
    with torch.no_grad():
        return torch.equal(quantizer.decode(quantizer.encode(weight)), quantizer(weight))
