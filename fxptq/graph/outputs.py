"""Chooses the restored picture among a network's outputs, once for the loss, the scores and restoring.

A network may return a tensor, or tensors in tuples, lists and dicts (deep supervision, features, masks). Promises: the
choice is made once, from a picture and the output for it, and is a path to the picture in every later output; the
network's own output is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxptq.errors import InputError

Path = tuple[Any, ...]
"""Positions in tuples and lists, keys of dicts, from the outermost inwards."""


@dataclass(frozen=True)
class PictureOutput:
    """The position of the restored picture in a network's output.

    Attributes:
        path: see `Path`; empty if the output is the picture itself.
        scale: ratio of the picture's height and width to the input's; 0 if the output is no picture of the input.
    """

    path: Path = ()
    scale: int = 1

    def pick(self, output: Any) -> Tensor:
        """The restored picture of one output.

        Raises:
            InputError: the output has another form than the one that the path was made for.
        """
        found = output
        for key in self.path:
            try:
                found = None if isinstance(found, Tensor) else found[key]
            except (KeyError, IndexError, TypeError):
                found = None
        if not isinstance(found, Tensor):
            where = "".join(f"[{key!r}]" for key in self.path)
            raise InputError(f"the network returned {described(output)}; expected a tensor at output{where}")
        return found


WHOLE_OUTPUT = PictureOutput()


def picture_output(picture: Tensor, output: Any, scale: int | None = None) -> PictureOutput:
    """Chooses the restored picture among a network's outputs.

    A tensor qualifies that is [N, C, H, W] of floating point with the picture's N, and whose height and width are the
    same whole multiple of the picture's. Of several the largest is chosen; of equally large ones the first with as many
    channels as the picture; else the first. The picture itself, handed through, is chosen last.

    Args:
        picture: the input, [N, C, H, W].
        output: the network's output for `picture`.
        scale: the scale that the picture must have; None for any.

    Raises:
        InputError: no output qualifies; the message says what came out.
    """
    found = [
        (
            (
                not (tensor.shape == picture.shape and bool((tensor == picture).all())),
                tensor.shape[2] * tensor.shape[3],
                tensor.shape[1] == picture.shape[1],
            ),
            path,
            times,
        )
        for path, tensor in _tensors(output)
        if (times := scale_of(picture, tensor)) and scale in (None, times)
    ]
    if not found:
        at = "a whole scale" if scale is None else f"scale {scale}"
        raise InputError(
            f"the network turned {tuple(picture.shape)} into {described(output)}; expected a picture at {at} of it"
        )
    _, path, times = max(found, key=lambda one: one[0])  # the first of equals
    return PictureOutput(path, times)


def trained_output(picture: Tensor, output: Any, scale: int | None = None) -> PictureOutput:
    """The output that training compares: the restored picture, or the largest tensor where no output is a picture.

    Args:
        picture: the input, [N, C, H, W].
        output: the network's output for `picture`.
        scale: the scale of the restored picture, preferred where outputs have several; None for any.

    Raises:
        InputError: no output is a tensor of floating point.
    """
    with suppress(InputError):
        return picture_output(picture, output, scale)
    try:
        return picture_output(picture, output)
    except InputError:
        found = [(tensor.numel(), path) for path, tensor in _tensors(output) if tensor.is_floating_point()]
        if not found:
            raise
        return PictureOutput(max(found, key=lambda one: one[0])[1], 0)


def scale_of(picture: Tensor, output: Tensor) -> int:
    """How many times as high and wide as the picture an output is; 0 if it is no picture of it."""
    if picture.dim() != 4 or output.dim() != 4 or not output.is_floating_point() or len(output) != len(picture):
        return 0
    (height, width), (rows, columns) = picture.shape[2:], output.shape[2:]
    times = rows // height
    return times if (rows, columns) == (times * height, times * width) and output.shape[1] else 0


def described(output: Any) -> str:
    """An output in words for errors, such as `(1, 3, 8, 8) and (1, 10)`."""
    if isinstance(output, Tensor):
        return f"{tuple(output.shape)}" + ("" if output.is_floating_point() else f" of {output.dtype}")
    parts = [described(tensor) for _, tensor in _tensors(output)]
    if not parts:
        return f"a value of type {type(output).__name__} without tensors"
    return " and ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def _tensors(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, part in output.items():
            yield from _tensors(part, (*path, key))
    elif isinstance(output, (tuple, list)):
        for index, part in enumerate(output):
            yield from _tensors(part, (*path, index))
