"""Which output is the restored picture: chosen from shapes, found again by its path, refused by what came out."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from fxptq.errors import InputError
from fxptq.graph.outputs import PictureOutput, picture_output, trained_output

X = torch.ones(2, 3, 8, 12)
Pair = namedtuple("Pair", "sr lr")  # as networks have them


def out(channels: int, scale: int = 1, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(batch, channels, 8 * scale, 12 * scale, dtype=dtype)


@pytest.mark.parametrize(
    ("output", "path", "scale"),
    [
        (out(3, 4), (), 4),
        ((out(3, 2), out(3)), (0,), 2),
        ([out(64, 2), out(3, 2)], (1,), 2),
        ((out(3), out(3)), (0,), 1),
        ((out(5), out(6)), (0,), 1),
        ({"mask": out(1), "sr": out(3)}, ("sr",), 1),
        (OrderedDict(features=[out(3), out(64)], sr={"x2": out(3, 2), "x4": out(3, 4)}), ("sr", "x4"), 4),
        (Pair(out(3, 2), out(3)), (0,), 2),
        ((torch.zeros(2, 10), out(1, 3), 7, None), (1,), 3),
        ((out(3, 2, dtype=torch.int64), out(3)), (1,), 1),
        ((out(3, 2, batch=1), out(3)), (1,), 1),
        ((torch.zeros(2, 3, 16, 25), out(3)), (1,), 1),
        (out(3, 2, dtype=torch.float16), (), 2),
    ],
    ids=[
        "tensor", "larger", "channels", "first", "first of others", "dict", "nested", "named tuple", "vector",
        "integers", "batch", "no whole scale", "half",
    ],
)  # fmt: skip
def test_the_picture_is_chosen(output: Any, path: tuple[Any, ...], scale: int) -> None:
    found = picture_output(X, output)
    assert found == PictureOutput(path, scale)
    expected = output
    for key in path:
        expected = expected[key]
    assert found.pick(output) is expected


def test_the_input_handed_through_is_chosen_last() -> None:
    x = torch.rand(2, 3, 8, 12)
    assert picture_output(x, [x, out(3)]).path == (1,)
    assert picture_output(x, {"input": x.clone(), "features": out(64)}).path == ("features",)
    assert picture_output(x, (x,)).path == (0,)
    assert picture_output(x, x) == PictureOutput((), 1)


def test_the_scale_that_is_known_decides() -> None:
    output = [out(3, 2), out(3, 4), out(64, 2)]
    assert picture_output(X, output, 2).path == (0,)
    with pytest.raises(InputError, match=r"expected a picture at scale 3 of it"):
        picture_output(X, output, 3)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(2, 10), r"into \(2, 10\); expected a picture at a whole scale of it"),
        ((torch.zeros(2, 3, 4, 6), out(3, dtype=torch.uint8)), r"\(2, 3, 4, 6\) and \(2, 3, 8, 12\) of torch.uint8;"),
        ([out(3, batch=1)] * 6, r"into (\(1, 3, 8, 12\) and ){3}\(1, 3, 8, 12\) and 2 more;"),
        ({"loss": 3.0}, "into a value of type dict without tensors;"),
        (None, "into a value of type NoneType without tensors;"),
    ],
    ids=["vector", "small and whole", "many", "no tensor", "nothing"],
)  # fmt: skip
def test_outputs_without_a_picture_are_named(output: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        picture_output(X, output)
    assert "\n" not in str(caught.value)


def test_training_compares_the_largest_tensor_where_there_is_no_picture() -> None:
    output = (torch.zeros(2, 10), torch.zeros(2, 7, 7), torch.zeros(2, 90, dtype=torch.int64))
    assert trained_output(X, output) == PictureOutput((1,), 0)
    assert trained_output(X, (out(3), torch.zeros(2, 9999))) == PictureOutput((0,), 1)
    with pytest.raises(InputError, match="expected a picture"):
        trained_output(X, out(3, dtype=torch.int64))


@pytest.mark.parametrize("output", [out(3), (out(3),), {"sr": 3}, 5], ids=["tensor", "short", "dict", "number"])
def test_an_output_of_another_form_is_named(output: Any) -> None:
    with pytest.raises(InputError, match=r"expected a tensor at output\['sr'\]\[1\]"):
        PictureOutput(("sr", 1)).pick(output)
