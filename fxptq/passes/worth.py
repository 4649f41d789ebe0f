"""Worth: how much a squared error of a picture weighs in a distillation.

PSNR is a mean over pictures of logarithms, so that an error costs the less, the larger the network's own error is in
that picture. That error grows with the detail of the picture, and differs twentyfold from one photograph to the next. A
plain mean over a few pictures is the verdict of the one with the most detail. Weighted, all of them have a say.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLAT = 0.03
"""The differences of neighbours, as a part of white, that a picture is taken to have beside its own.

Without it, pictures that are nearly flat would decide. A flat one counts twice as much as the mean photograph; with
0.007, two levels of noise, it counts twenty times as much, which cost CRAFT at 3 bits more than plain means do.
"""


@torch.no_grad()
def worth(pictures: Tensor, white: float) -> Tensor:
    """The weight of each picture's mean squared error.

    Args:
        pictures: restored by the float network, [N, C, H, W]; outputs of another form all weigh the same.
        white: the value of white in them, above 0.

    Returns:
        [N] float64: one over the mean square of the differences of neighbours, down and across, and a constant.
    """
    if pictures.dim() != 4 or min(pictures.shape[-2:]) < 2 or not pictures.is_floating_point():
        return torch.ones(len(pictures) if pictures.dim() else 1, dtype=torch.float64)
    x = pictures.detach().double()
    down, across = (x.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3))
    return (1 / (down + across + (_FLAT * white) ** 2)).cpu()
