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
from fxptq.kernels.layer import Layer, integer_layer, product_terms
from fxptq.kernels.ops import Activation
from fxptq.kernels.panels import LOG2E, key_major, pad_columns, places_first
from fxptq.kernels.patterns import Stem
from fxptq.kernels.survey import Survey
from fxptq.quant.grid import Grid
from fxptq.refusal import Refusal


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
    """The operands of a layer: the node of the input's codes, the codes and grids of the weight, and the bias."""

    input: fx.Node
    weight: Tensor
    grids: tuple[Grid, ...]
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
        self.attributes: dict[str, Any] = {}
        self._targets: dict[str, str] = {}
        self.kernels: dict[str, str] = {}
        self._moved: dict[tuple[fx.Node, Grid], fx.Node] = {}
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
        return None if value is None else self.new.get_attr(self._hold(name, value))

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
        grid = self.survey.grid(quantizer)
        path: list[fx.Node] = []
        top = source
        while patterns.is_move(top) and not {top, top.all_input_nodes[0]} & self.survey.written:
            path.append(top)
            top = top.all_input_nodes[0]
        if not path or _count(top) > _count(source):
            path, top = [], source
        codes = self._moved.get((top, grid))
        if codes is None or top in self.survey.written:  # a call may have overwritten the value since
            terms = {"lower": grid.offset, "step": grid.scale, "levels": grid.levels}
            codes = self._moved[top, grid] = self._call("quantize", self.values[top], **terms)
        for node in reversed(path):
            if (node, grid) not in self._moved:
                before = self._moved[node.all_input_nodes[0], grid]
                self._moved[node, grid] = self._copy(node, self.values | {node.all_input_nodes[0]: before})
            codes = self._moved[node, grid]
        return codes

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
        layer = integer_layer(
            operands.weight,
            operands.grids,
            operands.bias,
            self.survey.grid(node.args[0]),
            padded=geometry is not None and any(geometry.padding),
        )
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
        grids = quantizer.grids()
        assert not isinstance(grids, Refusal)  # noqa: S101
        bias = self.survey.constant(argument(node, 2, "bias"))
        return _Operands(self._input(first), quantizer.encode(weight), grids, bias)

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
            "out_scale": 1.0,
            "out_offset": 0.0,
        }
        targets = self.survey.targets.get(stem.end)
        if targets is None:
            return layer, epilogue
        levels = torch.zeros_like(layer.scale)
        if stem.activation is Activation.NONE and stem.residual is None:
            columns = self.survey.columns(stem.end, targets) or {
                next(iter(targets.values())): list(range(layer.columns))
            }
            scale, offset = torch.zeros_like(layer.scale), torch.zeros_like(layer.scale)
            for target, members in columns.items():
                scale[members], offset[members] = target.scale, target.grid.zero_point
                levels[members] = target.grid.levels
            layer = layer.times(scale).plus(offset)
        else:
            target = next(iter(targets.values()))
            levels[:] = target.grid.levels
            epilogue |= {"out_scale": target.scale, "out_offset": target.grid.zero_point}
        epilogue["levels"] = pad_columns(levels)
        return layer, epilogue

    def _float_layer(self, stem: Stem) -> None:
        """Computes a convolution without a kernel on integers in floats; its stem holds nothing else."""
        node = stem.layer
        operands, geometry = self._operands(node), self.survey.site(node).geometry
        assert geometry is not None  # noqa: S101  # the back end looked at it
        module = GeneralConvolution(
            operands.weight, operands.grids, operands.bias, grid=self.survey.grid(node.args[0]), geometry=geometry
        )
        result = self.new.call_module(self._hold("convolution", module), (operands.input,))
        self.values[node] = self._serving((node,), "integers in floats", result)

    def _product(self, site: fx.Node) -> None:
        first, second = site.args[:2]
        assert isinstance(first, fx.Node)  # noqa: S101  # as Survey made sure
        assert isinstance(second, fx.Node)  # noqa: S101
        lhs, rhs = self.survey.grid(first), self.survey.grid(second)
        terms = product_terms(lhs, rhs)
        result = self._call(
            "matmul", self._input(first), self._input(second), bits=rhs.bits, largest=lhs.levels, out=terms
        )
        self.values[site] = self._serving((site,), "matmul", result)

    def _layer_norm(self, node: fx.Node) -> None:
        quantizer, target = next(iter(self.survey.targets[node].items()))
        width = node.meta["shape"][-1]
        one = self.survey.quantizer(quantizer).lower.new_ones(width).double()
        weight, bias = (
            self.survey.constant(argument(node, 2, "weight")),
            self.survey.constant(argument(node, 3, "bias")),
        )
        scale = one if weight is None else weight.double()
        offset = 0.0 * one if bias is None else bias.double()
        self.codes[node] = self._call(
            "layer_norm_codes",
            self.values[node.all_input_nodes[0]],
            scale=self._tensor("scale", pad_columns(scale * target.scale)),
            offset=self._tensor("offset", pad_columns(offset * target.scale + target.grid.zero_point)),
            eps=float(argument(node, 4, "eps", 1e-5)),
            levels=target.grid.levels,
        )

    def _attention(self, mix: fx.Node, pattern: AttentionPattern) -> None:
        query, key = pattern.scores.args[:2]
        value = mix.args[1]
        assert isinstance(query, fx.Node)  # noqa: S101  # as Survey made sure
        assert isinstance(key, fx.Node)  # noqa: S101
        assert isinstance(value, fx.Node)  # noqa: S101
        prob, value_grid = self.survey.grid(pattern.probabilities), self.survey.grid(value)
        target = next(iter(self.survey.targets[mix].values())) if mix in self.survey.targets else None
        terms = product_terms(self.survey.grid(query), self.survey.grid(key))
        out = product_terms(prob, value_grid)
        if target is not None:
            out = [term * target.scale for term in out]
            out[4] += target.grid.zero_point
        rows = self.new.call_method("transpose", (self._input(key), -2, -1))
        result = self._call(
            "attention",
            self._input(query),
            rows,
            self._input(value),
            bias=self._sum_of([term for term in pattern.terms if not term.per_window]),
            mask=self._sum_of([term for term in pattern.terms if term.per_window]),
            query_bits=self.survey.grid(query).bits,
            key_bits=self.survey.grid(key).bits,
            value_bits=value_grid.bits,
            logit=[pattern.factor * LOG2E * term for term in (terms[0], terms[2])],
            prob=[1.0 / prob.scale, prob.zero_point, float(prob.levels)],
            out=out,
            levels=0 if target is None else target.grid.levels,
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


def _count(node: fx.Node) -> int:
    return prod(node.meta.get("shape", ()))
