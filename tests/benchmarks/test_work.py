"""The work that a benchmark sets speed against, counted by hand for one layer of each kind."""

from __future__ import annotations

import pytest
import torch

from benchmarks.work import work_of
from fxptq.graph.geometry import Geometry
from fxptq.kernels.layer import Layer
from fxptq.kernels.layouts import PANELS, ROWS, Layout
from fxptq.quant.grid import Grid
from tests.kernels.helpers import codes, epilogue


class One(torch.nn.Module):
    """One operator, behind a view."""

    def __init__(self, layout: Layout, shape: tuple[int, ...]) -> None:
        super().__init__()
        layer = Layer(torch.zeros(shape, dtype=torch.int8), torch.ones(shape[0]), torch.zeros(shape[0]))
        place = (layer, 8, Grid(1.0, 0.0, 4))
        served = layout.linear(*place) if len(shape) == 2 else layout.convolution(*place, Geometry(padding=(1, 1)))
        self.operator = getattr(torch.ops.fxptq, served.operator)
        self.arguments = epilogue() | served.layer.epilogue() | served.arguments | {"columns": shape[0]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator(x.view(x.shape), **self.arguments)


@pytest.mark.parametrize("layout", [PANELS, ROWS], ids=["panels", "rows"])
@pytest.mark.parametrize(
    ("shape", "given", "products"),
    [
        pytest.param((20, 24), (2, 7, 24), 2 * 7 * 24 * 20, id="linear"),
        pytest.param((20, 5, 3, 3), (2, 5, 6, 7), 2 * 6 * 7 * 20 * 5 * 9, id="convolution"),
        pytest.param((3, 24, 3, 3), (1, 24, 6, 7), 6 * 7 * 3 * 24 * 9, id="few-columns"),
        pytest.param((24, 24, 3, 3), (1, 24, 6, 7), 6 * 7 * 24 * 24 * 9, id="transformed"),
    ],
)
def test_products_and_bytes(layout: Layout, shape: tuple[int, ...], given: tuple[int, ...], products: int) -> None:
    one, x = One(layout, shape), codes(given, 4)
    work = work_of(one, x)
    assert work.products == products
    tensors = [x, one(x), *(value for value in one.arguments.values() if isinstance(value, torch.Tensor))]
    assert work.bytes == sum(t.numel() * t.element_size() for t in tensors)
