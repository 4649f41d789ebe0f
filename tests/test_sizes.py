"""The sizes that a network takes: every answer is one that a plain search over all sizes gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxptq.errors import InputError
from fxptq.sizes import ANY_SIZE, Sizes

RULES = st.builds(Sizes, st.integers(1, 9), st.integers(1, 20), st.booleans())
SIDES = st.integers(1, 40)


def admitted(sizes: Sizes, height: int, width: int) -> bool:
    """The definition, written out."""
    if sizes.fixed is not None:
        return (height, width) == sizes.fixed
    return (
        height % sizes.multiple == width % sizes.multiple == 0
        and min(height, width) >= sizes.minimum
        and (not sizes.square or height == width)
    )


@given(RULES, SIDES, SIDES)
def test_a_size_is_taken_by_definition(sizes: Sizes, height: int, width: int) -> None:
    assert sizes.takes(height, width) == admitted(sizes, height, width)


@given(RULES, SIDES, SIDES)
def test_the_smallest_size_at_least_a_pictures(sizes: Sizes, height: int, width: int) -> None:
    # Multiples of up to 9 and minima of up to 20: the next size lies within 70 pixels.
    fitting = [(h, w) for h in range(height, 70) for w in range(width, 70) if admitted(sizes, h, w)]
    assert sizes.at_least(height, width) == min(fitting, key=lambda size: size[0] * size[1])
    assert sizes.near(height, width) == sizes.at_least(height, width)


@given(RULES, SIDES, SIDES, SIDES)
def test_the_crop_that_fits(sizes: Sizes, height: int, width: int, side: int) -> None:
    fitting = [s for s in range(1, min(height, width) + 1) if admitted(sizes, s, s)]
    small = [s for s in fitting if s <= side]
    expected = max(small) if small else min(fitting, default=None)
    assert sizes.crop(height, width, side) == (None if expected is None else (expected, expected))


def test_one_size_only() -> None:
    sizes = Sizes(fixed=(32, 64))
    assert sizes.takes(32, 64)
    assert not sizes.takes(64, 32)
    assert sizes.at_least(7, 64) == sizes.near(100, 100) == sizes.crop(40, 64, 16) == (32, 64)
    assert sizes.crop(64, 40, 16) is None
    with pytest.raises(
        InputError, match="a picture of 33x10 is larger than 32x64, the only size that the network takes"
    ):
        sizes.at_least(33, 10)


@given(RULES, st.integers(1, 30), st.integers(1, 30))
def test_padding_reflects_as_numpy_does(sizes: Sizes, height: int, width: int) -> None:
    x = torch.arange(2 * height * width, dtype=torch.float32).reshape(1, 2, height, width)
    high, wide = sizes.at_least(height, width)
    padding = [(0, 0), (0, 0), (0, high - height), (0, wide - width)]
    np.testing.assert_array_equal(sizes.padded(x).numpy(), np.pad(x.numpy(), padding, mode="reflect"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multiple": 0}, "the multiple of a network's sizes is 0; expected 1 or more"),
        ({"minimum": -1}, "the minimum of a network's sizes is -1"),
        ({"multiple": 8, "fixed": (32, 60)}, "the fixed size 32x60 is none of sizes in multiples of 8"),
        ({"minimum": 40, "fixed": (32, 60)}, "the fixed size 32x60 is none of sizes of at least 40"),
        ({"square": True, "fixed": (32, 64)}, "the fixed size 32x64 is not square"),
    ],
    ids=str,
)
def test_rules_that_exclude_each_other_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sizes(**fields)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (ANY_SIZE, "any size"),
        (Sizes(8), "sizes in multiples of 8"),
        (Sizes(8, 32), "sizes in multiples of 8 and at least 32"),
        (Sizes(square=True), "squares of any size"),
        (Sizes(1, 16, square=True), "squares of at least 16"),
        (Sizes(fixed=(32, 64)), "32x64 only"),
    ],
    ids=str,
)
def test_in_words(sizes: Sizes, words: str) -> None:
    assert str(sizes) == words
