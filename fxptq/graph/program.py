"""A captured network that runs for every input size: graphs by class of sizes over one set of weights and quantizers.

A graph is used where its conditions on the sizes hold; where none does, the network is captured again, transparently.
Any number of threads may run a program: one that needs a new graph waits for other captures, and the rest do not.
Quantizers belong to the program and are found by site name, never owned by a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxptq.errors import CaptureError, FxptqError, InputError
from fxptq.graph.cache import Cache
from fxptq.graph.calls import argument
from fxptq.graph.capture import Capture, capture
from fxptq.graph.constants import attribute
from fxptq.graph.copies import independent_copy
from fxptq.graph.exclusive import CAPTURING
from fxptq.graph.holder import Holder
from fxptq.graph.insert import insert_quantizers, module_name
from fxptq.graph.plan import Planner
from fxptq.graph.randomness import OwnRandomNumbers
from fxptq.graph.runnable import runnable
from fxptq.graph.sites import Operand, Site, find_sites
from fxptq.graph.topology import residual_stages
from fxptq.graph.twins import Twins, example_of, same_form
from fxptq.graph.wrappers import network_of
from fxptq.memory import return_freed_memory
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.scheme import make_quantizer

Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]

_OWN = "model."
"""The names of the network's own tensors in the holder begin so; other tensors belong to one graph."""


@dataclass(frozen=True)
class Variant:
    """The network for one class of sizes.

    Attributes:
        capture: the graph as captured and where it holds.
        sites: its sites, planned.
        inserted: the graph with quantizers.
        stage_ends: names of the nodes at which residual stages end.
        module: runs `inserted`.
        shapes: what it was captured on.
        holder: the module whose tensors and quantizers the graphs read.
    """

    capture: Capture
    sites: tuple[Site, ...]
    inserted: fx.Graph
    stage_ends: tuple[str, ...]
    module: fx.GraphModule
    shapes: Shapes
    holder: Holder

    @cached_property
    @torch.inference_mode(mode=False)
    def with_features(self) -> fx.GraphModule:
        """Runs `inserted` and returns (output, [value at each stage end]); made when distillation first asks for it."""
        graph = copy.deepcopy(self.inserted)
        by_name = {node.name: node for node in graph.nodes}
        output = graph.output_node()
        output.args = ((output.args[0], [by_name[name] for name in self.stage_ends]),)
        return runnable(self.holder, graph, "Tapped")


class Program(nn.Module):
    """A network as graphs; see the module's description.

    Args:
        model: any network; it is copied and left as it was.
        example: one input it accepts, or a tuple of positional inputs.
        plan: which sites get quantizers; None leaves all of them in float.
        twin: a program of the same network with other values of its weights: what was proved of a graph of the one need
            not be proved again of the other's.
        limit: how many graphs are kept; the least recently used goes first.

    Attributes:
        sites: the sites of the first graph, planned.
        quantizers: by key, in the order of execution.

    Raises:
        CaptureError: the network cannot be captured.
        InputError: the plan does not fit the network.
    """

    _like: Tensor

    @torch.inference_mode(mode=False)  # whatever the caller's mode, what is kept must be trainable
    def __init__(
        self,
        model: nn.Module,
        example: Tensor | tuple[Tensor, ...],
        plan: Planner | None = None,
        *,
        twin: Program | None = None,
        limit: int = 16,
    ) -> None:
        super().__init__()
        inputs = (example,) if isinstance(example, Tensor) else tuple(example)
        _refuse_torchscript(network_of(model))
        self.holder = Holder(independent_copy(model).eval().requires_grad_(False))
        self.register_buffer("_like", torch.empty(0, dtype=inputs[0].dtype), persistent=False)
        self.limit = limit
        self._plan = plan
        self._cache: Cache[Variant] = Cache()
        self._sources: dict[str, str | None] = {}
        self._shared: frozenset[str] = frozenset()
        self._biases: dict[str, str] = {}
        self.sites: tuple[Site, ...] = ()
        self.quantizers: dict[str, Quantizer] = {}
        self._numbers: OwnRandomNumbers | None = None
        self._twins: Twins = Twins() if twin is None else twin._twins  # noqa: SLF001  # of its own class
        self._twins.add(*(() if twin is None else (twin,)), self)
        first = self.variant(self._checked(inputs))
        self.sites, self.stage_ends = first.sites, first.stage_ends
        self._first = first.capture  # quantizers read its constants, even when its graph has gone
        self._sources = _sources(first, self.operands())
        self._shared = _shared(first, self.operands())
        self._biases = _biases(first)

    # -- graphs --------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in: the type of its inputs."""
        return self._like.dtype

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The graphs in the cache, in the order they were captured."""
        return self._cache.values

    @torch.inference_mode(mode=False)
    def variant(self, inputs: tuple[Tensor, ...]) -> Variant:
        """The graph for inputs of these sizes, captured now if none holds."""
        known = self._cache.get(_shapes(inputs))
        if known is not None:
            return known
        tried = self.variants
        return self._holding(inputs, tried) or self._captured_as(inputs, tried)

    def _holding(self, inputs: tuple[Tensor, ...], among: tuple[Variant, ...]) -> Variant | None:
        """The first graph that is right for inputs of these sizes."""
        sizes = _shapes(inputs)
        for variant in among:
            if _alike(variant.shapes, sizes) and variant.capture.holds(self.holder, inputs):
                self._cache.remember(sizes, variant)
                return variant
        return None

    def _captured_as(self, inputs: tuple[Tensor, ...], unfit: tuple[Variant, ...]) -> Variant:
        """A graph other than the unfit ones: one that a twin has for these inputs, or another."""
        with CAPTURING:
            for twin in self._twins.of(self.variants):
                if not (_alike(twin.shapes, _shapes(inputs)) and twin.capture.holds(twin.holder, inputs)):
                    continue
                taken = capture(self.holder.model, example_of(twin.shapes, inputs), twin.capture)
                if same_form(taken.graph, twin.capture.graph):
                    variant = self._kept(taken, twin.shapes)
                    return self._holding(inputs, (variant,)) or self._captured_on(inputs, unfit)
            return self._captured_on(inputs, unfit)

    def _captured_on(self, inputs: tuple[Tensor, ...], unfit: tuple[Variant, ...]) -> Variant:
        """A graph other than the unfit ones: another thread's, captured while this one waited, or a new one."""
        with CAPTURING:
            newer = tuple(variant for variant in self.variants if not any(variant is other for other in unfit))
            return self._holding(inputs, newer) or self._kept(capture(self.holder.model, inputs), _shapes(inputs))

    def _kept(self, taken: Capture, shapes: Shapes) -> Variant:
        """A new graph, from now on in the cache."""
        names = self.holder.keep(taken.constants)
        taken = taken.renamed(names)
        self.holder.keep_for(taken, names.values())
        variant = self._build(taken, shapes)
        self._cache.add(variant.shapes, variant, self.limit)
        return_freed_memory()
        return variant

    def _build(self, taken: Capture, shapes: Shapes) -> Variant:
        sites = find_sites(taken.graph)
        if self.sites:
            known = {site.name: site for site in self.sites}
            sites = tuple(_as_calibrated(site, known.get(site.name)) for site in sites)
        elif self._plan is not None:
            sites = tuple(self._plan.apply(sites))
            self._make_quantizers(sites)
        inserted = insert_quantizers(taken.graph, sites)
        stage_ends = residual_stages(taken.graph)
        module = runnable(self.holder, inserted, "Quantized")
        return Variant(taken, sites, inserted, stage_ends, module, shapes, self.holder)

    def _make_quantizers(self, sites: tuple[Site, ...]) -> None:
        for operand in (operand for site in sites for operand in site.operands):
            if operand.bits is None or operand.quantizer in self.quantizers:
                continue
            quantizer = make_quantizer(
                operand.scheme, operand.bits, ranges=operand.ranges, axis=operand.axis, role=operand.role
            )
            quantizer.float()  # whatever torch.set_default_dtype says: grids are in float32
            self.holder.quantizers.add_module(module_name(operand.quantizer), quantizer)
            self.quantizers[operand.quantizer] = quantizer

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Any:
        """Runs the network, quantized where quantizers are on. Inputs and output are the network's own."""
        return self.run(inputs, lambda variant: variant.module.forward(*(x.clone() for x in inputs)))

    def with_features(self, *inputs: Tensor) -> tuple[Any, list[Tensor]]:
        """Runs the network and also returns the values at `stage_ends`."""
        output, features = self.run(inputs, lambda variant: variant.with_features.forward(*(x.clone() for x in inputs)))
        return output, features

    def run(self, inputs: tuple[Tensor, ...], way: Callable[[Variant], Any]) -> Any:
        """What `way` makes of the graph for inputs of these sizes.

        Args:
            inputs: the network's own.
            way: runs a graph on them. Where it fails at sizes that the graph was not captured at, it gets a graph that
                was: the network may catch an error there, or ask for something that no condition knows.

        Raises:
            CaptureError: the network fails on the inputs.
        """
        variant = self.variant(self._checked(inputs))
        sizes = _shapes(inputs)
        try:
            return self._go(variant, way)
        except FxptqError:
            raise
        except Exception:
            if variant.shapes == sizes:
                raise
        with torch.inference_mode(mode=False):
            variant = self._captured_on(inputs, tuple(other for other in self.variants if other.shapes != sizes))
        return self._go(variant, way)

    def _go(self, variant: Variant, way: Callable[[Variant], Any]) -> Any:
        with self._numbers if self._numbers is not None and variant.capture.draws else nullcontext():
            return way(variant)

    @contextmanager
    def drawing(self, numbers: OwnRandomNumbers) -> Iterator[None]:
        """Within, a network that draws random numbers draws these; one that draws none runs as fast as ever."""
        before, self._numbers = self._numbers, numbers
        try:
            yield
        finally:
            self._numbers = before

    def _checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not inputs or not all(isinstance(x, Tensor) for x in inputs):
            kinds = ", ".join(type(x).__name__ for x in inputs) or "nothing"
            raise InputError(f"a network takes one tensor or more, not {kinds}")
        return inputs

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Program:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        self._cache.replace(self._remade)
        return self

    def _remade(self, variant: Variant) -> Variant:
        return replace(variant, module=runnable(self.holder, variant.inserted, "Quantized"))

    # -- tensors -------------------------------------------------------------------------------------------------------

    def operands(self) -> dict[str, Operand]:
        """The operands that have a quantizer, by its key; of those that share one, the first."""
        found: dict[str, Operand] = {}
        for site in self.sites:
            for operand in site.operands:
                if operand.quantizer:
                    found.setdefault(operand.quantizer, operand)
        return found

    def set_bits(self, widths: Mapping[str, int]) -> None:
        """Gives quantizers other widths. Their bounds stay the same numbers, so they need to be set again.

        Args:
            widths: bits by quantizer key, 2 to 8 each.

        Raises:
            InputError: there is no such quantizer.
        """
        for key, bits in widths.items():
            if key not in self.quantizers:
                raise InputError(f"there is no quantizer {key!r}; `quantizers` lists them")
            self.quantizers[key].set_bits(bits)
        self.sites = tuple(_with_bits(site, widths) for site in self.sites)
        self._cache.replace(
            lambda variant: replace(variant, sites=tuple(_with_bits(site, widths) for site in variant.sites))
        )

    def weight_target(self, key: str) -> str | None:
        """Where the constant lives that a quantizer reads (`model.layers.0.weight`); None for an activation's.

        Raises:
            InputError: there is no such quantizer.
        """
        if key not in self._sources:
            raise InputError(f"there is no quantizer {key!r}; `quantizers` lists them")
        return self._sources[key]

    def weight_of(self, key: str) -> Tensor | None:
        """The constant tensor that quantizer reads; None for an activation's quantizer."""
        target = self.weight_target(key)
        if target is None:
            return None
        weight: Tensor = attribute(self.holder, target)
        return weight.detach()

    def has_other_readers(self, key: str) -> bool:
        """Whether anything but that quantizer reads the constant it quantizes, so that it must stay as it is."""
        return key in self._shared

    def set_weight(self, key: str, value: Tensor) -> None:
        """Overwrites the constant tensor that quantizer reads, in place, so that every graph sees it."""
        weight = self.weight_of(key)
        if weight is None:
            raise InputError(f"{key} quantizes an activation; only a weight can be set")
        weight.copy_(value)

    def bias_of(self, key: str) -> Tensor | None:
        """The bias of the layer whose weight a quantizer reads, [outputs]; None where no bias can be changed.

        A bias can be changed if it is a tensor of the network and nothing but the one call of the layer reads it.
        """
        target = self._biases.get(key)
        if target is None:
            return None
        bias: Tensor = attribute(self.holder, target)
        return bias.detach()

    def tensors_in(self, twin: Program, key: str) -> tuple[Tensor, Tensor | None]:
        """The weight that a quantizer reads and the bias of its layer, as another program of the same network has them.

        Args:
            twin: a program of the same network.
            key: the quantizer of a weight; the bias is None where `bias_of` is.
        """
        target, bias = self.weight_target(key), self._biases.get(key)
        if target is None:
            raise InputError(f"{key} quantizes an activation, which no network holds")
        weight: Tensor = attribute(twin.holder, target)
        return weight.detach(), None if bias is None else attribute(twin.holder, bias).detach()

    def set_bias(self, key: str, value: Tensor) -> None:
        """Overwrites the bias of the layer whose weight that quantizer reads, in place, so that every graph sees it."""
        bias = self.bias_of(key)
        if bias is None:
            raise InputError(f"{key}: the layer has no bias that can be set")
        bias.copy_(value)

    def vectors(self) -> dict[str, nn.Parameter]:
        """The network's own parameters with one axis that the graph reads and no quantizer does, by target.

        These are biases, and the scales and shifts of norms. A vector from which a constant was computed, once and for
        all, is left out.
        """
        nodes = self._first.graph.nodes
        folded = {str(node.target) for node in nodes if node.op == "get_attr" and node.meta.get("folded")}
        read = {str(node.target) for node in nodes if node.op == "get_attr" and str(node.target).startswith(_OWN)}
        found = {
            target: attribute(self.holder, target) for target in sorted(read - folded - set(self._sources.values()))
        }
        return {
            target: tensor
            for target, tensor in found.items()
            if isinstance(tensor, nn.Parameter) and tensor.dim() == 1 and tensor.is_floating_point()
        }


def _as_calibrated(site: Site, known: Site | None) -> Site:
    """A site of a later graph: as the site of that name in the first graph, or in float, as it was not calibrated.

    A checkpoint has the sites of the first graph only, so that what is loaded treats later graphs in the same way.
    """
    slots = [operand.slot for operand in site.operands]
    if known is None or (known.kind, [operand.slot for operand in known.operands]) != (site.kind, slots):
        return replace(site, reason=site.reason or "not met at the size the network was calibrated at")
    operands = tuple(
        replace(
            operand,
            bits=first.bits,
            ranges=first.ranges,
            axis=first.axis,
            scheme=first.scheme,
            quantizer=first.quantizer,
        )
        for operand, first in zip(site.operands, known.operands, strict=True)
    )
    return replace(site, operands=operands, reason=known.reason)


def _with_bits(site: Site, widths: Mapping[str, int]) -> Site:
    operands = tuple(
        replace(operand, bits=widths.get(operand.quantizer, operand.bits)) if operand.quantizer else operand
        for operand in site.operands
    )
    return replace(site, operands=operands)


def _shapes(inputs: tuple[Tensor, ...]) -> Shapes:
    return tuple((tuple(x.shape), x.dtype) for x in inputs)


def _alike(known: Shapes, asked: Shapes) -> bool:
    """Whether inputs have the types, the numbers of axes and, of pictures, the channels that a graph was made for.

    Only the network itself can say what it makes of others, and refuses most.
    """
    forms = [
        [(dtype, len(shape), shape[1] if len(shape) == 4 else 0) for shape, dtype in one] for one in (known, asked)
    ]
    return forms[0] == forms[1]


def _refuse_torchscript(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("TorchScript hides what a network computes; pass the Python module it was made from")


def _sources(variant: Variant, operands: dict[str, Operand]) -> dict[str, str | None]:
    """Where the constant lives that each quantizer reads; None for an activation's."""
    nodes = {node.name: node for node in variant.capture.graph.nodes}
    found = {key: nodes[operand.source] for key, operand in operands.items()}
    return {key: str(node.target) if node.op == "get_attr" else None for key, node in found.items()}


def _shared(variant: Variant, operands: dict[str, Operand]) -> frozenset[str]:
    """The quantizers whose source is read otherwise too: unquantized, through another quantizer, or for a constant."""
    readers = {(site.node, operand.source, operand.quantizer) for site in variant.sites for operand in site.operands}
    nodes = {node.name: node for node in variant.capture.graph.nodes}
    return frozenset(
        key
        for key, operand in operands.items()
        if nodes[operand.source].meta.get("folded")
        or any((user.name, operand.source, key) not in readers for user in nodes[operand.source].users)
    )


def _biases(variant: Variant) -> dict[str, str]:
    """Where the bias lives that belongs to each quantizer of a weight, for layers with a bias of their own."""
    nodes = {node.name: node for node in variant.capture.graph.nodes}
    layers: dict[str, list[fx.Node]] = {}
    for site in variant.sites:
        for operand in site.operands:
            if operand.slot == "weight" and operand.quantizer:
                layers.setdefault(operand.quantizer, []).append(nodes[site.node])
    biases = {key: argument(calls[0], 2, "bias") for key, calls in layers.items() if len(calls) == 1}
    return {
        key: str(bias.target)
        for key, bias in biases.items()
        if isinstance(bias, fx.Node)
        and bias.op == "get_attr"
        and str(bias.target).startswith(_OWN)
        and len(bias.users) == 1
        and not bias.meta.get("folded")
    }
