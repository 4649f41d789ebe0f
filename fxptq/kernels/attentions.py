"""Whole attentions in a graph, found by structure: a product, what is added to it, a softmax, the product behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from fxptq.graph.calls import ADD, argument, name_of
from fxptq.kernels import patterns


@dataclass(frozen=True)
class Term:
    """A tensor added to the logits, times `factor`: one matrix a window for all heads, or a head for all windows."""

    tensor: fx.Node
    factor: float
    per_window: bool


@dataclass(frozen=True)
class AttentionPattern:
    """Two products with a softmax between, as one operation.

    Attributes:
        scores: the first product.
        mix: the second, whose left factor is the quantized softmax.
        probabilities: the quantizer of the softmax.
        factor: multiplies the first product.
        terms: what is added to the logits.
        inner: the nodes that vanish in the operation.
    """

    scores: fx.Node
    mix: fx.Node
    probabilities: fx.Node
    factor: float = 1.0
    terms: tuple[Term, ...] = ()
    inner: frozenset[fx.Node] = field(default_factory=frozenset)


def attention_of(mix: fx.Node, lowered: frozenset[fx.Node]) -> AttentionPattern | None:
    """The attention that ends in a product, if it is one over [windows, heads, queries, keys].

    Args:
        mix: a matmul node with quantized factors.
        lowered: the matmul nodes whose factors are codes.
    """
    probabilities = mix.args[0]
    if not isinstance(probabilities, fx.Node) or patterns.only_reader(probabilities) is not mix:
        return None
    softmax = probabilities.args[0]
    if (
        not isinstance(softmax, fx.Node)
        or name_of(softmax) != "softmax"
        or patterns.only_reader(softmax) is not probabilities
    ):
        return None
    shape = softmax.meta.get("shape", ())
    if len(shape) != 4 or argument(softmax, 1, "dim") not in (-1, 3):
        return None
    for factor, terms, path in _logits(softmax.args[0], softmax, lowered):
        scores = path[-1]
        if scores.meta.get("shape") == shape and scores is not mix:
            return AttentionPattern(
                scores, mix, probabilities, factor, terms, frozenset({*path, softmax, probabilities})
            )
    return None


def _logits(
    node: object, reader: fx.Node, lowered: frozenset[fx.Node]
) -> Iterator[tuple[float, tuple[Term, ...], tuple[fx.Node, ...]]]:
    """Ways to read a node as factor * product + terms: the factor, the terms and the nodes down to the product."""
    if not isinstance(node, fx.Node) or patterns.only_reader(node) is not reader:
        return
    scaled = patterns.factor_of(node)
    if node in lowered:
        yield 1.0, (), (node,)
    elif scaled is not None:
        for factor, terms, path in _logits(node.args[0], node, lowered):
            yield factor * scaled, tuple(Term(t.tensor, t.factor * scaled, t.per_window) for t in terms), (node, *path)
    elif name_of(node) in ("view", "reshape", "contiguous"):
        for factor, terms, path in _logits(node.args[0], node, lowered):
            yield factor, terms, (node, *path)
    elif name_of(node) in ADD and len(node.args) == 2 and not node.kwargs:
        for own, other in (node.args, node.args[::-1]):
            for factor, terms, path in _logits(own, node, lowered):
                term = _term(other, node.meta.get("shape", ()), path[-1].meta.get("shape", ()))
                if term is not None:
                    yield factor, (*terms, term), (node, *path)


def _term(tensor: object, here: tuple[int, ...], scores: tuple[int, ...]) -> Term | None:
    """What kind of term a tensor is that is added where the logits have shape `here`."""
    if not isinstance(tensor, fx.Node) or len(scores) != 4:
        return None
    shape = tuple(tensor.meta.get("shape", ()))
    if len(shape) < 2 or shape[-2:] != scores[-2:] or len(shape) > len(here):
        return None
    lead = (1,) * (len(here) - len(shape)) + shape[:-2]
    windows, heads = scores[:2]
    if here == scores:
        per_window = lead[0] > 1
        fits = lead in ((1, 1), (1, heads)) if not per_window else lead == (windows, 1)
    elif len(here) == 5 and here[0] * here[1] == windows and here[2:] == scores[1:]:
        per_window = lead[1] > 1 or (lead[2] == 1 and here[1] == 1)
        fits = lead == (1, here[1], 1) if per_window else lead in ((1, 1, 1), (1, 1, heads))
    else:
        return None
    return Term(tensor, 1.0, per_window) if fits else None
