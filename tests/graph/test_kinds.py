"""The table of kinds, and the geometry of convolutions however their calls are spelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxptq.graph import Program, Site
from fxptq.graph.geometry import Geometry
from fxptq.graph.kinds import KINDS, arithmetic, kind_named, quantizable, weight_axis


def test_each_name_stands_for_one_row() -> None:
    assert max(Counter(kind.name for kind in KINDS).values()) == 1
    assert max(Counter(function for kind in KINDS for function in kind.functions).values()) == 1
    assert arithmetic() == {function for kind in KINDS for function in kind.functions}


def test_what_can_be_quantized_in_order() -> None:
    assert quantizable() == ("linear", "conv2d", "conv_transpose2d", "matmul")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rows_say_all_of_their_sites(kind: Any) -> None:
    assert kind.is_layer + kind.is_product == bool(kind.slots)
    assert (kind.weight_axis is not None) == (kind.channel_axis is not None) == kind.is_layer
    assert kind.slots or kind.reason


def test_output_axes_of_weights() -> None:
    axes = {name: weight_axis(name) for name in ("linear", "conv2d", "conv_transpose2d", "matmul", "unheard of")}
    assert axes == {"linear": 0, "conv2d": 0, "conv_transpose2d": 1, "matmul": 0, "unheard of": 0}
    assert kind_named("unheard of").name == "other"


class Call(nn.Module):
    """A function of the input and a weight."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


def site_of(call: Callable[[Tensor, Tensor], Tensor], weight: tuple[int, ...], x: tuple[int, ...]) -> Site:
    (site,) = Program(Call(call, *weight).eval(), torch.rand(x)).sites
    return site


def flat(**changes: Any) -> Geometry:
    numbers = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "trailing": 0} | changes
    return Geometry(**{name: (number,) for name, number in numbers.items()})


IMAGE, LINE, CUBE = (1, 4, 9, 12), (1, 4, 12), (1, 4, 6, 7, 8)
SPELLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...], Geometry | None]] = {
    "nothing said": (F.conv2d, (8, 4, 3, 3), IMAGE, Geometry()),
    "by position": (
        lambda x, w: F.conv2d(x, w, None, 2, (1, 0), (2, 1), 2),
        (8, 2, 3, 3), IMAGE, Geometry((2, 2), (1, 0), (2, 1), 2),
    ),
    "by names": (
        lambda x, w: F.conv2d(groups=4, padding=(1,), input=x, dilation=3, weight=w, stride=[1, 2]),
        (8, 1, 2, 3), IMAGE, Geometry((1, 2), (1, 1), (3, 3), 4),
    ),
    "valid": (lambda x, w: F.conv2d(x, w, padding="valid"), (8, 4, 3, 3), IMAGE, Geometry()),
    "same": (lambda x, w: F.conv2d(x, w, None, 1, "same", 2), (8, 4, 3, 5), IMAGE, Geometry((1, 1), (2, 4), (2, 2))),
    "same, even": (
        lambda x, w: F.conv2d(x, w, padding="same", dilation=(1, 3)),
        (8, 4, 4, 2), IMAGE, Geometry((1, 1), (1, 1), (1, 3), trailing=(1, 1)),
    ),
    "groups from sizes": (
        lambda x, w: F.conv2d(x, w.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]),
        (4, 1, 3, 3), IMAGE, Geometry(groups=4),
    ),
    "padding from sizes": (lambda x, w: F.conv2d(x, w, padding=(1, x.shape[2] // 4)), (8, 4, 3, 3), IMAGE, None),
    "without a batch": (lambda x, w: F.conv2d(x[0], w, groups=2), (8, 2, 3, 3), IMAGE, Geometry(groups=2)),
    "transposed, by position": (
        lambda x, w: F.conv_transpose2d(x, w, None, (2, 3), 1, (0, 1), 2, 2),
        (4, 3, 3, 3), IMAGE, Geometry((2, 3), (1, 1), (2, 2), 2, (0, 1), transposed=True),
    ),
    "transposed, by names": (
        lambda x, w: F.conv_transpose2d(x, w, dilation=2, output_padding=1, groups=4, stride=2, padding=(1, 2)),
        (4, 5, 3, 3), IMAGE, Geometry((2, 2), (1, 2), (2, 2), 4, (1, 1), transposed=True),
    ),
    "transposed, groups from sizes": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=x.shape[1]),
        (4, 5, 2, 2), IMAGE, Geometry((2, 2), groups=4, transposed=True),
    ),
    "transposed, stride from sizes": (
        lambda x, w: F.conv_transpose2d(x, w, stride=x.shape[2] // 4), (4, 5, 3, 3), IMAGE, None,
    ),
    "line": (lambda x, w: F.conv1d(x, w, None, 2, "valid", 3), (8, 4, 3), LINE, flat(stride=2, dilation=3)),
    "line, same": (lambda x, w: F.conv1d(x, w, padding="same"), (8, 4, 4), LINE, flat(padding=1, trailing=1)),
    "cube": (
        lambda x, w: F.conv3d(x, w, padding=(0, 1, 2), groups=2),
        (8, 2, 3, 3, 3), CUBE, Geometry((1,) * 3, (0, 1, 2), (1,) * 3, 2, (0,) * 3, trailing=(0,) * 3),
    ),
    "linear": (F.linear, (8, 12), IMAGE, None),
    "product": (lambda x, w: x @ w, (12, 8), IMAGE, None),
}  # fmt: skip


@pytest.mark.parametrize(("call", "weight", "x", "expected"), SPELLINGS.values(), ids=SPELLINGS)
def test_geometry(
    call: Callable[[Tensor, Tensor], Tensor], weight: tuple[int, ...], x: tuple[int, ...], expected: Geometry | None
) -> None:
    assert site_of(call, weight, x).geometry == expected


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_borders_are_padded_outside(mode: str) -> None:
    program = Program(nn.Conv2d(4, 8, (3, 4), padding="same", padding_mode=mode).eval(), torch.rand(1, 4, 9, 9))
    (site,) = program.sites
    assert site.geometry == Geometry()
    assert site.shapes["input"] == (1, 4, 11, 12)


@st.composite
def walks(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], int]:
    """Sizes of an image and a kernel, the arguments of a convolution over them, and its groups."""
    axes = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride, padding = (
        tuple(draw(st.integers(1, 3)) for _ in range(axes)),
        tuple(draw(st.integers(0, 3)) for _ in kernel),
    )
    image = tuple(d * (k - 1) + 1 + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel, strict=True))
    same = draw(st.booleans())
    arguments = {"dilation": dilation} | ({"padding": "same"} if same else {"stride": stride, "padding": padding})
    return image, kernel, arguments, draw(st.sampled_from([1, 2]))


@settings(max_examples=60, deadline=None)
@given(walks())
def test_windows_are_what_the_kernel_multiplies(
    walk: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], int],
) -> None:
    image, kernel, arguments, groups = walk
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(image)]
    x = torch.randn(2, 4, *image, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    expected = function(x, weight, groups=groups, **arguments)
    geometry = site_of(lambda x, w: function(x, w, groups=groups, **arguments), tuple(weight.shape), (2, 4, *image))
    assert geometry.geometry is not None
    windows = geometry.geometry.windows(x, kernel)
    assert windows.shape == (2, 4, *expected.shape[2:], *kernel)
    parts = zip(windows.chunk(groups, 1), weight.chunk(groups), strict=True)
    axes = len(kernel)
    contracted = [1, *range(2 + axes, 2 + 2 * axes)]
    found = [torch.tensordot(part, w, (contracted, list(range(1, 2 + axes)))) for part, w in parts]
    torch.testing.assert_close(torch.cat(found, -1).movedim(-1, 1), expected)
    torch.testing.assert_close(geometry.geometry.apply(x, weight, groups), expected)


def test_windows_by_loops() -> None:
    x = torch.arange(2 * 5 * 6, dtype=torch.float64).reshape(1, 2, 5, 6) + 1
    geometry = Geometry((2, 1), (1, 2), (1, 3), trailing=(1, 0))
    windows = geometry.windows(x, (2, 2))
    assert windows.shape == (1, 2, 4, 7, 2, 2)
    for c, i, j, a, b in product(range(2), range(4), range(7), range(2), range(2)):
        row, column = 2 * i + a - 1, j + 3 * b - 2
        inside = 0 <= row < 5 and 0 <= column < 6
        assert windows[0, c, i, j, a, b] == (x[0, c, row, column] if inside else 0)


@torch.library.custom_op("fxptq_tests::linear", mutates_args=())
def not_linear(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.sum()


@not_linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_that_has_the_name_of_a_layer_is_none() -> None:
    for call in (lambda x, w: not_linear(x, w.clone()), lambda x, w: torch.ops.fxptq_tests.linear(x, w.clone())):
        site = site_of(call, (12, 12), IMAGE)
        assert (site.kind, site.operands) == ("other", ())
        assert "a custom operator hides what it computes" in site.reason
