"""Running a network on pictures of any size: padded to the multiple it needs, and in overlapping tiles to bound memory.

Promises: tiles lie on the network's own grid and are cut where both neighbours have seen at least `overlap` pixels of
context, so that a network whose output depends on no more than `overlap` pixels around gives exactly what it gives for
the whole picture; for others the difference is confined to what lies beyond that context.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import torch
from torch import Tensor

from fxptq.errors import FxptqError, InputError

Run = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # (done, total)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Continue a picture by reflection at the bottom and right, up to the next multiple.

    Args:
        x: `[N, C, H, W]`, H and W at least 1; reflection is repeated where the picture is smaller than the padding.
        multiple: 1 or more.

    Returns:
        `[N, C, ceil(H / multiple) * multiple, ceil(W / multiple) * multiple]`.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        if length % multiple:
            x = x.index_select(axis, _reflected(length, -(-length // multiple) * multiple).to(x.device))
    return x


def run_padded(run: Run, x: Tensor, *, multiple: int = 1, scale: int = 1) -> Tensor:
    """Run on the padded picture and crop the result back: `[N, C, H, W]` to `[N, C', H * scale, W * scale]`.

    Raises:
        FxptqError: the network's output is not `scale` times its input.
    """
    padded = pad_to_multiple(x, multiple)
    return _checked(run(padded), padded, scale)[:, :, : x.shape[2] * scale, : x.shape[3] * scale]


def run_tiled(
    run: Run,
    x: Tensor,
    *,
    tile: int,
    overlap: int = 16,
    multiple: int = 1,
    scale: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Run tile by tile; no more than `[N, C, tile, tile]` goes through the network at a time.

    Args:
        run: the network.
        x: `[N, C, H, W]`.
        tile: height and width of a tile in input pixels; rounded down to the multiple. All tiles have the same size,
            except along an axis that one tile spans.
        overlap: context in input pixels that each pixel kept has on every side, but at the borders of the picture.
        multiple: the size multiple the network needs; tiles start at multiples of it, so that windows stay aligned.
        scale: output size over input size.
        progress: called after each tile with (done, total).

    Returns:
        `[N, C', H * scale, W * scale]`.

    Raises:
        InputError: the tile leaves nothing between its overlaps.
        FxptqError: the network's output is not `scale` times its input.
    """
    tile = tile // multiple * multiple
    stride = (tile - 2 * overlap) // multiple * multiple
    if overlap < 0 or stride < 1:
        least = -(-(2 * overlap + multiple) // multiple) * multiple
        raise InputError(
            f"a tile of {tile} with an overlap of {overlap} at each side leaves nothing; give {least} or more"
        )
    padded = pad_to_multiple(x, multiple)
    spans = list(product(_spans(padded.shape[2], tile, stride), _spans(padded.shape[3], tile, stride)))
    result = padded.new_empty(0)
    for done, ((rows, keep_rows), (columns, keep_columns)) in enumerate(spans, start=1):
        part = padded[:, :, rows, columns]
        output = _checked(run(part), part, scale)
        if done == 1:  # only now are its channels and type known
            result = output.new_empty((*output.shape[:2], padded.shape[2] * scale, padded.shape[3] * scale))
        result[:, :, _scaled(keep_rows, scale), _scaled(keep_columns, scale)] = output[
            :, :, _scaled(keep_rows, scale, rows.start), _scaled(keep_columns, scale, columns.start)
        ]
        if progress is not None:
            progress(done, len(spans))
    return result[:, :, : x.shape[2] * scale, : x.shape[3] * scale]


def _spans(length: int, tile: int, stride: int) -> list[tuple[slice, slice]]:
    """For each tile along an axis, what it reads and what is kept of it; what is kept covers the axis once."""
    last = max(0, length - tile)
    starts = [*range(0, last, stride), last]
    # Neighbours are cut in the middle of what they share, so that both sides have as much context as can be.
    cuts = [0, *((second + first + tile) // 2 for first, second in pairwise(starts)), length]
    reads = (slice(start, min(start + tile, length)) for start in starts)
    return list(zip(reads, (slice(*cut) for cut in pairwise(cuts)), strict=True))


def _scaled(part: slice, scale: int, origin: int = 0) -> slice:
    return slice((part.start - origin) * scale, (part.stop - origin) * scale)


def _reflected(length: int, wanted: int) -> Tensor:
    """Positions 0, 1, ..., length - 1, length - 2, ..., 1, 0, 1, ... without repeating the ends."""
    period = max(1, 2 * (length - 1))
    positions = torch.arange(wanted) % period
    return torch.where(positions < length, positions, period - positions)


def _checked(output: Tensor, given: Tensor, scale: int) -> Tensor:
    expected = (given.shape[0], given.shape[2] * scale, given.shape[3] * scale)
    if output.ndim != 4 or (output.shape[0], *output.shape[2:]) != expected:
        raise FxptqError(
            f"the network turned {tuple(given.shape)} into {tuple(output.shape)}; expected {expected[1]}x{expected[2]} "
            f"(rows x columns) at scale {scale}: check the recipe's scale"
        )
    return output
