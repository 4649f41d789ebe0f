"""What there is to rewrite in an inserted graph: sites, what goes with them in one go, and which values become codes.

Nothing is changed here. patterns.py knows what a structure looks like; this module finds each of them, settles which of
those that overlap is taken, and says of every site that stays simulated why.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from fxptq.graph.calls import argument, name_of
from fxptq.graph.constants import attribute
from fxptq.graph.geometry import Geometry
from fxptq.graph.kinds import geometry_of
from fxptq.kernels import patterns
from fxptq.kernels.attentions import AttentionPattern, attention_of
from fxptq.kernels.fold import Grid, fits
from fxptq.kernels.ops import Activation
from fxptq.kernels.patterns import Stem
from fxptq.quant.quantizer import Quantizer

_KINDS = ("linear", "conv2d", "conv_transpose2d", "matmul")


@dataclass(frozen=True)
class Target:
    """The grid a value goes onto, and the factor between the two."""

    grid: Grid
    factor: float

    @property
    def scale(self) -> float:
        """Of the value."""
        return self.factor / self.grid.step

    @property
    def offset(self) -> float:
        """Added to the scaled value: as the simulation rounds it, so that zero gets the same code."""
        lower, step = torch.tensor([self.grid.lower, self.grid.step], device="cpu")
        return float(-lower / step)


class Survey:
    """What a graph holds for the rewriter.

    Args:
        graph: with quantizers, as `Variant.inserted`.
        holder: what the graph reads.

    Attributes:
        written: nodes whose memory some call writes into.
        sites: nodes that can be lowered.
        simulated: the others that are quantized, by site name, with the reason.
        coded: quantizers whose readers all take codes.
        attentions: whole attentions by their last node.
        stems: layers with what follows them, by their last node.
        targets: values that are made as codes: for each, the target of each quantizer that reads it.
        skipped: nodes inside an attention or a stem, whose values never exist.
    """

    def __init__(self, graph: fx.Graph, holder: nn.Module) -> None:
        self.graph, self.holder = graph, holder
        self.simulated: dict[str, str] = {}
        self.written = patterns.written(graph)
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

    def has_kernel(self, site: fx.Node) -> bool:
        """Whether a layer has an operator of its own, and is no integer convolution in floats."""
        if name_of(site) == "linear":
            return True
        geometry = self.geometry(site)
        return not geometry.transposed and geometry.groups == 1 and geometry.dilation == (1, 1)

    def geometry(self, site: fx.Node) -> Geometry:
        """How a convolution walks over its input."""
        found = geometry_of(site)
        assert found is not None  # noqa: S101  # as _obstacle made sure
        return found

    def _find_sites(self) -> frozenset[fx.Node]:
        found = set()
        for node in self.graph.nodes:
            name = node.meta.get("site")
            if name is None or not any(self._is_quantizer(source) for source in node.all_input_nodes):
                continue
            reason = self._obstacle(node)
            if reason:
                self.simulated[name] = reason
            else:
                found.add(node)
        return frozenset(found)

    def _is_quantizer(self, node: object) -> bool:
        return isinstance(node, fx.Node) and "quantizer" in node.meta

    def quantizer(self, node: fx.Node) -> Quantizer:
        """What a quantizer node calls."""
        found: Quantizer = attribute(self.holder, str(node.target))
        return found

    def grid(self, node: object) -> Grid:
        """The grid of a quantizer node."""
        assert isinstance(node, fx.Node)  # noqa: S101  # a quantizer node, as _obstacle made sure
        found = Grid.of(self.quantizer(node))
        assert found is not None  # noqa: S101  # likewise
        return found

    def _obstacle(self, site: fx.Node) -> str:
        """Why a site cannot be lowered; empty if it can."""
        name = name_of(site)
        if name not in _KINDS:
            return f"no integer kernel for {name}"
        first, second = site.args[:2]
        if not (self._is_quantizer(first) and self._is_quantizer(second)):
            return "one factor is in float"
        assert isinstance(first, fx.Node)  # noqa: S101  # just seen
        assert isinstance(second, fx.Node)  # noqa: S101
        if any(self.quantizer(node).mode != "on" for node in (first, second)):
            return "a quantizer is off"
        if first.meta.get("dtype") != torch.float32:
            return f"computes in {first.meta.get('dtype')}"
        return self._product_obstacle(first, second) if name == "matmul" else self._layer_obstacle(site, first, second)

    def _layer_obstacle(self, site: fx.Node, first: fx.Node, second: fx.Node) -> str:
        if Grid.of(self.quantizer(first)) is None:
            return "the input has several ranges, or one of zero width"
        if bool((self.quantizer(second).width == 0).any()):
            return "a range of the weight has zero width"
        if second.all_input_nodes[0].op != "get_attr":
            return "the weight is computed from the image"
        if name_of(site) != "linear":
            if len(first.meta["shape"]) != 4 or isinstance(argument(site, 4, "padding"), str):
                return "no batch axis, or padding given by name"
            if geometry_of(site) is None:
                return "its stride, padding or dilation is computed from sizes"
        return "" if fits(second.meta["shape"]) else "its sums do not fit 32 bits"

    def _product_obstacle(self, first: fx.Node, second: fx.Node) -> str:
        if any(Grid.of(self.quantizer(node)) is None for node in (first, second)):
            return "a factor has several ranges, or one of zero width"
        if first.meta["shape"][:-2] != second.meta["shape"][:-2] or len(first.meta["shape"]) < 3:
            return "the factors have different batches"
        return ""

    def _find_attentions(self) -> dict[fx.Node, AttentionPattern]:
        products = frozenset(node for node in self.sites if name_of(node) == "matmul")
        found: dict[fx.Node, AttentionPattern] = {}
        for node in self.graph.nodes:
            pattern = attention_of(node, products) if node in products else None
            # One operation takes what the scores of another could also be part of only once.
            if pattern is not None and not pattern.inner & self.written:
                found[node] = pattern
        return found

    def _find_stems(self) -> dict[fx.Node, Stem]:
        """By their last node."""
        taken: dict[fx.Node, Stem] = {}
        for node in self.graph.nodes:
            if node not in self.sites or name_of(node) == "matmul":
                continue
            bare = node in self.written or not self.has_kernel(node)
            stem = Stem(node, node) if bare else patterns.stem_of(node, self.written)
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
            if not (made or (stem is not None and self.has_kernel(stem.layer))) or node in self.written:
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
        axis = len(end.meta["shape"]) - 1 if name_of(stem.layer) == "linear" else 1
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
