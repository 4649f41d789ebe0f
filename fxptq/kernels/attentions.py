"""Finds whole attentions in a graph by structure: a product, terms added to it, a softmax, and a second product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from fxptq.graph.calls import ADD, argument, name_of, words
from fxptq.kernels import patterns
from fxptq.kernels.shapes import Shape, Shapes

_COPIES = words("dropout contiguous clone float")
"""Calls that give the values of their argument in its shape; networks are quantized in evaluation."""


@dataclass(frozen=True)
class Term:
    """A tensor that is added to the logits.

    Attributes:
        tensor: the node of the tensor.
        factor: multiplies the tensor.
        per_window: whether the tensor has one matrix for each window, shared by the heads; otherwise it has one for
            each head, shared by the windows.
    """

    tensor: fx.Node
    factor: float
    per_window: bool


@dataclass(frozen=True)
class AttentionPattern:
    """Two products with a softmax between them, computed as one operation.

    Attributes:
        scores: the first product.
        mix: the second product, whose left factor is the quantized softmax.
        probabilities: the quantizer of the softmax.
        factor: multiplies the first product.
        terms: the tensors that are added to the logits.
        inner: the nodes that vanish in the operation.
    """

    scores: fx.Node
    mix: fx.Node
    probabilities: fx.Node
    factor: float = 1.0
    terms: tuple[Term, ...] = ()
    inner: frozenset[fx.Node] = field(default_factory=frozenset)


def attention_of(mix: fx.Node, lowered: frozenset[fx.Node], shapes: Shapes) -> AttentionPattern | None:
    """The attention that ends in a product; None where the product ends no attention of shape [windows, heads, N, M].

    Args:
        mix: a matmul node with quantized factors.
        lowered: the matmul nodes whose factors are codes.
        shapes: the shapes of the graph's values.
    """
    probabilities = mix.args[0]
    if not isinstance(probabilities, fx.Node) or _only_reader(probabilities) is not mix:
        return None
    behind = _through_copies(probabilities.args[0], probabilities)
    softmax = behind[-1] if behind else probabilities
    if name_of(softmax) != "softmax":
        return None
    if len(softmax.meta.get("shape", ())) != 4 or argument(softmax, 1, "dim") not in (-1, 3):
        return None
    for factor, terms, path in _logits(softmax.args[0], softmax, lowered, shapes):
        scores = path[-1]
        if scores is not mix and shapes.same(scores, softmax) and _fit(scores, mix, shapes):
            computing = frozenset({*path, *behind, probabilities})
            sizes = _sizes_within(computing)
            if sizes is not None:
                return AttentionPattern(scores, mix, probabilities, factor, terms, computing | sizes)
    return None


def _sizes_within(inner: frozenset[fx.Node]) -> frozenset[fx.Node] | None:
    """The nodes that ask for sizes of inner nodes, or compute with them; None if any serves another node."""
    found: set[fx.Node] = set()
    waiting = [user for node in inner for user in node.users if patterns.asks_for_shape(user)]
    while waiting:
        node = waiting.pop()
        if node in inner or node in found:
            continue
        if node.op == "output" or "shape" in node.meta:
            return None
        found.add(node)
        waiting.extend(node.users)
    return frozenset(found)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one reader of a node's values; None when there are more."""
    readers = patterns.readers(node)
    return readers[0] if len(readers) == 1 else None


def _through_copies(node: object, reader: fx.Node) -> list[fx.Node]:
    """A node and its sources back to the first that computes values; empty if others read one of them."""
    path: list[fx.Node] = []
    while isinstance(node, fx.Node) and _only_reader(node) is reader:
        path.append(node)
        if name_of(node) not in _COPIES:
            return path
        reader, node = node, node.args[0]
    return []


def _fit(scores: fx.Node, mix: fx.Node, shapes: Shapes) -> bool:
    """Whether all factors of both products have the same windows and heads, so that none is broadcast."""
    factors = [node for node in (*scores.args[:2], mix.args[1]) if isinstance(node, fx.Node)]
    leads = [[shape[:-2] for shape in shapes.of(node)] for node in (scores, *factors)]
    return len(factors) == 3 and bool(leads[0]) and all(lead == leads[0] for lead in leads)


def _logits(
    node: object, reader: fx.Node, lowered: frozenset[fx.Node], shapes: Shapes
) -> Iterator[tuple[float, tuple[Term, ...], tuple[fx.Node, ...]]]:
    """Ways to read a node as factor * product + terms: the factor, the terms and the nodes down to the product."""
    if not isinstance(node, fx.Node) or _only_reader(node) is not reader:
        return
    scaled = patterns.factor_of(node)
    if node in lowered:
        yield 1.0, (), (node,)
    elif scaled is not None:
        for factor, terms, path in _logits(node.args[0], node, lowered, shapes):
            yield factor * scaled, tuple(Term(t.tensor, t.factor * scaled, t.per_window) for t in terms), (node, *path)
    elif name_of(node) in _COPIES or name_of(node) in ("view", "reshape"):
        for factor, terms, path in _logits(node.args[0], node, lowered, shapes):
            yield factor, terms, (node, *path)
    elif name_of(node) in ADD and len(node.args) == 2 and not node.kwargs:
        for own, other in (node.args, node.args[::-1]):
            for factor, terms, path in _logits(own, node, lowered, shapes):
                term = _term(other, node, path[-1], shapes)
                if term is not None:
                    yield factor, (*terms, term), (node, *path)


def _term(tensor: object, sum_: fx.Node, scores: fx.Node, shapes: Shapes) -> Term | None:
    """A tensor that a sum adds to the logits, if it is the same kind of term at every size."""
    if not isinstance(tensor, fx.Node):
        return None
    sizes = list(zip(shapes.of(tensor), shapes.of(sum_), shapes.of(scores), strict=False))
    readings = [_readings(*shapes_there) for shapes_there in sizes]
    common = frozenset.intersection(*readings) if readings else frozenset()
    return Term(tensor, 1.0, "windows" in common and "heads" not in common) if common else None


def _readings(shape: Shape, here: Shape, scores: Shape) -> frozenset[str]:
    """The ways to read a term: as a matrix for each head (`heads`), for each window (`windows`), both, or neither.

    Args:
        shape: the shape of the term.
        here: the shape of the logits where the term is added.
        scores: the shape of the first product.
    """
    if len(scores) != 4 or len(shape) < 2 or shape[-2:] != scores[-2:] or len(shape) > len(here):
        return frozenset()
    lead = (1,) * (len(here) - len(shape)) + shape[:-2]
    windows, heads = scores[:2]
    for_heads: list[Shape]
    for_windows: list[Shape]
    if here == scores:
        for_heads, for_windows = [(1, 1), (1, heads)], [(windows, 1)]
    elif len(here) == 5 and here[0] * here[1] == windows and here[2:] == scores[1:]:
        for_heads, for_windows = [(1, 1, 1), (1, 1, heads)], [(1, here[1], 1), (here[0], here[1], 1)]
    else:
        return frozenset()
    return frozenset(name for name, leads in (("heads", for_heads), ("windows", for_windows)) if lead in leads)
