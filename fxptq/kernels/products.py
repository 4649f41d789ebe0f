"""Products of two activations in integers: their maps, and the numbers that the operators take for them.

As in maps.py, a sum stays a sum of codes if the factors of both operands have one product along the summed axis. The
other axes may have factors and centers of their own. Everything is computed once, in float64 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.kernels.destination import Target
from fxptq.kernels.maps import is_even
from fxptq.quant.coding import Coding
from fxptq.refusal import Refusal


@dataclass(frozen=True, eq=False)
class ProductMap:
    """The operands of a product in the form of the operators: value = unit * (code + shift), with centred right codes.

    Attributes:
        left: units and shifts of the left factor, [2, heads or 1, rows or 1].
        right: units and shifts of the right factor, [2, heads or 1, columns or 1].
        row_term: [heads or 1, depth] weights of the left codes, whose sum is added to each row; None where the right
            factor has no centers along the summed axis. The same number for all columns, which a softmax does not see.
        row_constant: [heads or 1], added with the row term.
        shares: whether the left values are codes over the sum of their row.
    """

    left: Tensor
    right: Tensor
    row_term: Tensor | None
    row_constant: Tensor
    shares: bool

    @property
    def row_sums(self) -> bool:
        """Whether the sums of the left codes matter."""
        return bool((self.right[1] != 0).any())

    @property
    def is_by_head(self) -> bool:
        """Whether all rows of a head have one unit and shift, and so have all columns."""
        return self.left.shape[2] == self.right.shape[2] == 1


def product_map(left: Coding, right: Coding) -> ProductMap | Refusal:
    """The maps of a product of two activations, or the reason why they do not leave its sums.

    Args:
        left: the coding of the left factor [..., heads, rows, depth].
        right: the coding of the right factor [..., heads, depth, columns].
    """
    if right.shares:
        return Refusal("the right factor of a product has shares")
    if left.factors.dim() > 3 or right.factors.dim() > 3:
        return Refusal("a map has other axes than heads, rows and columns")
    factors, other = (x.reshape((1,) * (3 - x.dim()) + tuple(x.shape)) for x in (left.factors, right.factors))
    grid, (step, offset) = left.grid, right.grid.signed()
    shift = (left.lowest / left.factors).reshape(factors.shape) / grid.scale
    other_center = right.centers.reshape(other.shape)
    other_shift = (offset + other_center / other) / step
    if left.shares:
        factors, shift = torch.ones_like(factors) / grid.scale, torch.zeros_like(shift)
    row_term, row_constant = None, torch.zeros(1, dtype=torch.float64, device="cpu")
    if factors.shape[2] > 1 or other.shape[1] > 1:
        if factors.shape[1] > 1 or other.shape[2] > 1:
            return Refusal("one map varies along the summed axis and along another one")
        if not is_even(factors[:, 0] * other[:, :, 0], -1):
            return Refusal("the factors of the product have no common product")
        if bool((shift != shift[..., :1]).any()):
            return Refusal("the left factor of the product has centers along the summed axis")
        common = (factors[:, 0] * other[:, :, 0]).mean(-1).view(-1, 1, 1)
        shift = shift[..., :1]
        if bool((other_center != 0).any()):
            row_term = factors[:, 0] * grid.scale * other_center[:, :, 0]
            row_constant = (shift[:, 0] * row_term).sum(-1)
        factors, other, other_shift = common, torch.ones_like(common), torch.full_like(common, offset / step)
    return ProductMap(
        torch.stack([factors * grid.scale, shift])[..., 0],
        torch.stack([other * step, other_shift])[:, :, 0],
        row_term,
        row_constant,
        left.shares,
    )


def logit_terms(scores: ProductMap) -> Tensor:
    """The numbers (a, b) of each head, which make logits a sum(A K) + b sum(K) of sums of codes, [2, heads or 1, 1].

    Terms that all keys of a query share are left out, because a softmax does not see them.
    """
    unit = scores.left[0] * scores.right[0]
    return torch.stack([unit, unit * scores.left[1]])


def output_terms(mix: ProductMap, target: Target | None, heads: int) -> Tensor:
    """The numbers (a, b, c, d, e) of the output of `ops.attention`, [5, heads or 1, columns or 1].

    Args:
        mix: the product with the values.
        target: the codes to make of the output, by head and column; None for values.
        heads: number of heads.
    """
    unit, (shift, own) = mix.left[0] * mix.right[0], (mix.left[1], mix.right[1])
    none = torch.zeros_like(unit * own * shift)
    terms = (
        [unit, none, none, none, unit * own]
        if mix.shares
        else [unit, unit * own, unit * shift, unit * own * shift, none]
    )
    out = torch.stack([term + none for term in terms])
    if target is None:
        return out
    out = out * target.scale.view(heads, -1)
    out[4] += target.offset.view(heads, -1)
    return out
