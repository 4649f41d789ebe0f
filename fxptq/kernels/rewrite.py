"""Rewrites an inserted graph on codes: integer operators replace the quantizers and the sites that read them.

The rewriter visits the nodes in order. A quantizer becomes the codes of its input. The epilogue of the layer, attention
or LayerNorm that computes the values makes these codes, where only quantizers read the values; elsewhere `quantize`
makes them. Calls that only move values are carried out on the codes. All other nodes are copied unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq.graph.calls import argument
from fxptq.graph.constants import attribute, eliminate_dead_code
from fxptq.graph.program import Variant
from fxptq.graph.runnable import runnable
from fxptq.graph.tensors import digest_of
from fxptq.kernels import patterns
from fxptq.kernels.attentions import AttentionPattern, Term
from fxptq.kernels.backend import Backend, FloatLayer, FusedLayer
from fxptq.kernels.convolution import GeneralConvolution
from fxptq.kernels.destination import target_of
from fxptq.kernels.layer import Layer, integer_layer
from fxptq.kernels.ops import Activation
from fxptq.kernels.panels import LOG2E, key_major, pad_columns, places_first
from fxptq.kernels.patterns import Stem, Use
from fxptq.kernels.products import logit_terms, output_terms
from fxptq.kernels.survey import Survey
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid


@dataclass(frozen=True)
class Rewritten:
    """A graph on codes.

    Attributes:
        module: runs the graph; holds its own tensors.
        kernels: the operator that serves each site, by site name. The node of the call has the names of its sites in
            `meta["sites"]`.
        simulated: the quantized sites that are computed as in the simulation, with the reason.
    """

    module: fx.GraphModule
    kernels: dict[str, str]
    simulated: dict[str, str]


@dataclass(frozen=True)
class _Operands:
    """The operands of a layer: the node of the input's codes, the codes of the weight, both codings, and the bias."""

    input: fx.Node
    entry: Coding
    weight: Tensor
    coding: Coding
    bias: Tensor | None


def rewrite(variant: Variant, holder: nn.Module, backend: Backend) -> Rewritten:
    """Rewrites a graph.

    Args:
        variant: a graph with quantizers, and its sites; it stays unchanged.
        holder: the module whose tensors the graph reads.
        backend: the back end that is to run the graph.
    """
    return _Rewriter(variant, holder, backend).run()


class _Rewriter:
    def __init__(self, variant: Variant, holder: nn.Module, backend: Backend) -> None:
        self.old, self.new, self.holder, self.backend = variant.inserted, fx.Graph(), holder, backend
        self.survey = Survey(variant, holder, backend)
        self.values: dict[fx.Node, fx.Node] = {}
        self.codes: dict[fx.Node, fx.Node] = {}
        self._device = next((tensor.device for tensor in holder.parameters()), torch.device("cpu"))
        self.attributes: dict[str, Any] = {}
        self._targets: dict[str, str] = {}
        self.kernels: dict[str, str] = {}
        self._moved: dict[tuple[fx.Node, Grid | str], fx.Node] = {}
        self._terms: dict[tuple[fx.Node, float], fx.Node] = {}

    def run(self) -> Rewritten:
        for node in self.old.nodes:
            self._visit(node)
        self.new.lint()
        eliminate_dead_code(self.new)
        targets = {str(node.target): None for node in self.new.nodes if node.op == "get_attr"}
        targets |= {str(node.target): None for node in self.new.nodes if node.op == "call_module"}
        module = runnable({target: self._attribute(target) for target in targets}, self.new, "Integer")
        return Rewritten(module, self.kernels, self.survey.simulated)

    def _attribute(self, target: str) -> Any:
        """The tensor or module that the new graph reads under a name."""
        return self.attributes[target] if target in self.attributes else attribute(self.holder, target)

    # -- nodes of the new graph ----------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node in self.survey.skipped:
            return
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if node in self.survey.coded:
            self.codes[node] = self._codes_of(node)
        elif node in self.survey.attentions:
            self._attention(node, self.survey.attentions[node])
        elif node in self.survey.stems:
            self._layer(self.survey.stems[node])
        elif node in self.survey.sites:
            self._product(node)
        elif node in self.survey.targets:
            self._layer_norm(node)
        elif source in self.codes and source not in self.values:
            self._follow(node, source)
        elif shift := patterns.channel_shift(node, self.holder):
            scale, offset = self._tensor("scale", shift[0]), self._tensor("offset", shift[1])
            values = self.values[node.all_input_nodes[0]]
            self.values[node] = self.new.call_function(torch.addcmul, (offset, values, scale))
        else:
            self.values[node] = self._copy(node, self.values)

    def _follow(self, node: fx.Node, source: fx.Node) -> None:
        """Rewrites a reader of a value that exists as codes only: a move, a scaling, or a question about sizes.

        A scaling leaves the codes unchanged, because the target of the quantizer includes its factor.
        """
        if patterns.factor_of(node) is not None:
            self.codes[node] = self.codes[source]
        elif patterns.asks_for_shape(node):
            self.values[node] = self._copy(node, self.values | {source: self.codes[source]})
        else:
            self.codes[node] = self._copy(node, self.values | {source: self.codes[source]})

    def _copy(self, node: fx.Node, new_nodes: dict[fx.Node, fx.Node]) -> fx.Node:
        copied = self.new.node_copy(node, new_nodes.__getitem__)
        if copied.op == "call_method" and copied.target == "view":
            # Results of kernels may have strides for which `view` fails.
            copied.target = "reshape"
        return copied

    def _call(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self.new.call_function(self.backend.operator(name), args, kwargs)

    def _hold(self, name: str, value: Tensor | nn.Module) -> str:
        """Stores a tensor or module and returns its target; equal tensors are stored once."""
        target = f"integer.{len(self.attributes)}_{name}"
        if isinstance(value, Tensor):
            known = self._targets.setdefault(digest_of(value), target)
            if known != target:
                return known
        self.attributes[target] = value
        return target

    def _tensor(self, name: str, value: Tensor | None) -> fx.Node | None:
        return None if value is None else self.new.get_attr(self._hold(name, value.to(self._device)))

    # -- quantizers ----------------------------------------------------------------------------------------------------

    def _codes_of(self, quantizer: fx.Node) -> fx.Node:
        source = quantizer.all_input_nodes[0]
        if source in self.codes and source not in self.values:
            return self.codes[source]
        if source.op == "get_attr":
            weight = self.survey.constant(source)
            assert weight is not None  # noqa: S101  # get_attr reads a tensor
            if any(self.survey.is_product(user) for user in quantizer.users):
                return self.new.get_attr(self._hold("codes", self.survey.quantizer(quantizer).encode(weight)))
            return self.values[source]  # the weight of a layer: `_layer` encodes it
        coding = self.survey.coding(quantizer)
        # A grid that is the same for all elements; otherwise the codes of this very quantizer and value.
        grid: Grid | str = coding.grid if coding.is_plain else f"{quantizer.target} {source.name}"
        path: list[fx.Node] = []
        top = source
        while patterns.is_move(top) and not {top, top.all_input_nodes[0]} & self.survey.written:
            path.append(top)
            top = top.all_input_nodes[0]
        numbers = self._numbers_at(source, quantizer, coding)
        before_moves = self._numbers_at(top, quantizer, coding) if path else None
        if before_moves is None or _count(top) > _count(source):
            path, top = [], source
        else:
            numbers = before_moves
        codes = self._moved.get((top, grid))
        if codes is None or top in self.survey.written:  # a call may have overwritten the value since
            codes = self._moved[top, grid] = self._encode(self.values[top], coding, numbers)
        for node in reversed(path):
            if (node, grid) not in self._moved:
                before = self._moved[node.all_input_nodes[0], grid]
                self._moved[node, grid] = self._copy(node, self.values | {node.all_input_nodes[0]: before})
            codes = self._moved[node, grid]
        return codes

    def _numbers_at(self, node: fx.Node, quantizer: fx.Node, coding: Coding) -> tuple[Tensor, ...] | None:
        """The numbers of a map for a value that moves take to a quantizer; None where no axis of the value has them.

        Returns:
            (scale, offset) in a shape that broadcasts to the value; empty without a map.
        """
        if coding.is_plain:
            return ()
        if node is quantizer.all_input_nodes[0]:
            return (1 / coding.steps, coding.zero_points)
        shapes = self.survey.shapes.of(node)
        for axis in range(len(node.meta["shape"])):
            same = len({shape[axis] for shape in shapes}) == 1
            target = target_of(node, (axis,), [(Use(quantizer, 1.0), coding)]) if same else None
            if target is not None:
                shape = [-1, *[1] * (len(node.meta["shape"]) - axis - 1)]
                return target.scale.view(shape), target.offset.view(shape)
        return None

    def _encode(self, values: fx.Node, coding: Coding, numbers: tuple[Tensor, ...] | None) -> fx.Node:
        """The call that makes codes of values; `numbers` as of `_numbers_at`."""
        grid = coding.grid
        if coding.shares:
            return self._call("share_codes", values, scale=1.0 / grid.scale, levels=grid.levels)
        if coding.is_plain:
            return self._call("quantize", values, lower=grid.offset, step=grid.scale, levels=grid.levels)
        assert numbers is not None  # noqa: S101  # a map has numbers at its quantizer
        scale, offset = (self._tensor("map", number.float().contiguous()) for number in numbers)
        return self._call("affine_codes", values, scale=scale, offset=offset, levels=grid.levels)

    # -- sites ---------------------------------------------------------------------------------------------------------

    def _serving(self, sites: tuple[fx.Node, ...], kernel: str, result: fx.Node) -> fx.Node:
        """Notes which call computes which sites."""
        names = tuple(str(site.meta["site"]) for site in sites)
        self.kernels |= dict.fromkeys(names, kernel)
        result.meta["sites"] = names
        return result

    def _layer(self, stem: Stem) -> None:
        node, served = stem.layer, self.survey.sites[stem.layer]
        if isinstance(served, FloatLayer):
            self._float_layer(stem)
            return
        assert isinstance(served, FusedLayer)  # noqa: S101  # stems begin with layers
        operands = self._operands(node)
        geometry = self.survey.site(node).geometry
        layer = integer_layer(operands.weight, operands.coding, operands.bias, operands.entry, geometry)
        if stem.shuffle > 1:
            layer = layer.reordered(places_first(layer.columns, stem.shuffle))
        layer, epilogue = self._epilogue(stem, layer.times(stem.factor))
        packed = served.pack(layer)
        arguments = packed.arguments | packed.layer.epilogue() | epilogue
        if geometry is not None:
            arguments["shuffle"] = stem.shuffle
        keywords = {
            key: self._tensor(key, value) if isinstance(value, Tensor) else value for key, value in arguments.items()
        }
        result = self._call(packed.operator, operands.input, columns=layer.columns, **keywords)
        self._keep(stem.end, self._serving((node,), packed.operator, result))

    def _operands(self, node: fx.Node) -> _Operands:
        first, second = node.args[:2]
        assert isinstance(first, fx.Node)  # noqa: S101  # as Survey made sure
        assert isinstance(second, fx.Node)  # noqa: S101
        quantizer, weight = self.survey.quantizer(second), self.survey.constant(second.all_input_nodes[0])
        assert weight is not None  # noqa: S101
        entry, coding = self.survey.coding(first), self.survey.coding(second)
        bias = self.survey.constant(argument(node, 2, "bias"))
        return _Operands(self._input(first), entry, quantizer.encode(weight), coding, bias)

    def _input(self, quantizer: fx.Node) -> fx.Node:
        """The codes of an operand, also where other calls read its simulated values."""
        return self.codes[quantizer] if quantizer in self.codes else self._codes_of(quantizer)

    def _keep(self, end: fx.Node, result: fx.Node) -> None:
        (self.codes if end in self.survey.targets else self.values)[end] = result

    def _epilogue(self, stem: Stem, layer: Layer) -> tuple[Layer, dict[str, Any]]:
        """The layer and the arguments of its epilogue; the layer includes the next grid where it is linear in it."""
        epilogue: dict[str, Any] = {
            "activation": int(stem.activation),
            "slope": stem.slope,
            "residual": None if stem.residual is None else self.values[stem.residual],
            "levels": None,
            "out_scale": None,
            "out_offset": None,
        }
        target = self.survey.targets.get(stem.end)
        if target is None:
            return layer, epilogue
        if stem.shuffle > 1:
            target = target.for_shuffle(stem.shuffle).reordered(places_first(layer.columns, stem.shuffle))
        scale, offset, levels = (x.to(layer.scale.device) for x in (target.scale, target.offset, target.levels))
        if stem.activation is Activation.NONE and stem.residual is None:
            layer = layer.times(scale).plus(offset)
        else:
            epilogue |= {"out_scale": pad_columns(scale), "out_offset": pad_columns(offset)}
        epilogue["levels"] = pad_columns(levels)
        return layer, epilogue

    def _float_layer(self, stem: Stem) -> None:
        """Computes a convolution without a kernel on integers in floats; its stem holds nothing else."""
        node = stem.layer
        operands, geometry = self._operands(node), self.survey.site(node).geometry
        assert geometry is not None  # noqa: S101  # the back end looked at it
        module = GeneralConvolution(
            operands.weight, operands.coding, operands.bias, entry=operands.entry, geometry=geometry
        )
        result = self.new.call_module(self._hold("convolution", module), (operands.input,))
        self.values[node] = self._serving((node,), "integers in floats", result)

    def _product(self, site: fx.Node) -> None:
        first, second = site.args[:2]
        assert isinstance(first, fx.Node)  # noqa: S101  # as Survey made sure
        assert isinstance(second, fx.Node)  # noqa: S101
        left, right, product = (
            self.survey.coding(first).grid,
            self.survey.coding(second).grid,
            self.survey.product(site),
        )
        result = self._call(
            "matmul",
            self._input(first),
            self._input(second),
            bits=right.bits,
            largest=left.levels,
            left=self._tensor("left", product.left),
            right=self._tensor("right", product.right),
            row_sums=product.row_sums,
            shares=product.shares,
        )
        result = self._serving((site,), "matmul", result)
        if product.row_term is not None and not patterns.ends_in_softmax(site, self.survey.shapes):
            terms = (product.row_term.float().unsqueeze(-1), product.row_constant.float().view(-1, 1, 1))
            weights, constant = (self._tensor("row", term) for term in terms)
            result = self.new.call_function(add_row_term, (result, self._input(first), weights, constant))
        self.values[site] = result

    def _layer_norm(self, node: fx.Node) -> None:
        target = self.survey.targets[node]
        weight, bias = (
            self.survey.constant(argument(node, 2, "weight")),
            self.survey.constant(argument(node, 3, "bias")),
        )
        scale = target.scale if weight is None else target.scale * weight.double().cpu()
        offset = target.offset if bias is None else target.offset + target.scale * bias.double().cpu()
        self.codes[node] = self._call(
            "layer_norm_codes",
            self.values[node.all_input_nodes[0]],
            scale=self._tensor("scale", pad_columns(scale)),
            offset=self._tensor("offset", pad_columns(offset)),
            eps=float(argument(node, 4, "eps", 1e-5)),
            levels=int(target.levels[0]),
        )

    def _attention(self, mix: fx.Node, pattern: AttentionPattern) -> None:
        query, key = pattern.scores.args[:2]
        value = mix.args[1]
        assert isinstance(query, fx.Node)  # noqa: S101  # as Survey made sure
        assert isinstance(key, fx.Node)  # noqa: S101
        assert isinstance(value, fx.Node)  # noqa: S101
        weights, values = self.survey.coding(pattern.probabilities), self.survey.coding(value)
        grids = [self.survey.coding(node).grid for node in (query, key)]
        target = self.survey.targets.get(mix)
        mixed = self.survey.product(mix)
        rows = self.new.call_method("transpose", (self._input(key), -2, -1))
        result = self._call(
            "attention",
            self._input(query),
            rows,
            self._input(value),
            bias=self._sum_of([term for term in pattern.terms if not term.per_window]),
            mask=self._sum_of([term for term in pattern.terms if term.per_window]),
            query_bits=grids[0].bits,
            key_bits=grids[1].bits,
            value_bits=values.grid.bits,
            logit=self._tensor("logit", pattern.factor * LOG2E * logit_terms(self.survey.product(pattern.scores))),
            prob=[1.0 / weights.grid.scale, weights.grid.zero_point, float(weights.grid.levels)],
            out=self._tensor("out", output_terms(mixed, target, mix.meta["shape"][1])),
            levels=0 if target is None else int(target.levels[0]),
            row_sums=mixed.row_sums,
            shares=mixed.shares,
        )
        self._keep(mix, self._serving((pattern.scores, mix), "attention", result))

    def _sum_of(self, terms: list[Term]) -> fx.Node | None:
        """The sum of terms of the logits, in the layout of `key_major`."""
        total: fx.Node | None = None
        for term in terms:
            logits = self._key_major(term)
            total = logits if total is None else self.new.call_function(torch.add, (total, logits))
        return total

    def _key_major(self, term: Term) -> fx.Node:
        constant = self.survey.constant(term.tensor) if term.tensor.op == "get_attr" else None
        if constant is not None:
            return self.new.get_attr(self._hold("logits", key_major(constant.float(), term.factor)))
        key = (term.tensor, term.factor)
        if key not in self._terms:
            self._terms[key] = self.new.call_function(key_major, (self.values[term.tensor], term.factor))
        return self._terms[key]


def add_row_term(values: Tensor, codes: Tensor, weights: Tensor, constant: Tensor) -> Tensor:
    """Adds a weighted sum of the left codes to each row of a product.

    Args:
        values: the product, [..., heads, rows, columns].
        codes: the left codes, [..., heads, rows, depth].
        weights: [heads or 1, depth, 1].
        constant: [heads or 1, 1, 1].
    """
    return values + (codes.to(weights.dtype) @ weights + constant)


def _count(node: fx.Node) -> int:
    return prod(node.meta.get("shape", ()))
