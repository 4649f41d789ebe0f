"""Running a network on pictures of any size: padded to a size that it takes, and in overlapping tiles to bound memory.

Promises: tiles lie on the network's own grid and are cut where both neighbours have seen at least `overlap` pixels of
context, so that a network whose output depends on no more than `overlap` pixels around gives exactly what it gives for
the whole picture; for others the difference is confined to what lies beyond that context.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

from torch import Tensor

from fxptq.errors import FxptqError, InputError
from fxptq.sizes import ANY_SIZE, Size, Sizes, reflected

Run = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # (done, total)

OVERLAP = 16  # pixels


def run_padded(run: Run, x: Tensor, *, sizes: Sizes = ANY_SIZE, scale: int = 1) -> Tensor:
    """Run on the padded picture and crop the result back: `[N, C, H, W]` to `[N, C', H * scale, W * scale]`.

    Raises:
        InputError: the network takes one size only, and the picture is larger.
        FxptqError: the network's output is not `scale` times its input.
    """
    padded = sizes.padded(x)
    return _checked(run(padded), padded, scale)[:, :, : x.shape[2] * scale, : x.shape[3] * scale]


def run_tiled(
    run: Run,
    x: Tensor,
    *,
    tile: int,
    overlap: int = OVERLAP,
    sizes: Sizes = ANY_SIZE,
    scale: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Run tile by tile; no more than `[N, C, tile, tile]` goes through the network at a time.

    Args:
        run: the network.
        x: `[N, C, H, W]`.
        tile: height and width of a tile in input pixels; rounded down to the multiple. All tiles have the same size,
            except along an axis that one tile spans. A network of one size takes tiles of that size whatever is asked.
        overlap: context in input pixels that each pixel kept has on every side, but at the borders of the picture.
        sizes: the sizes that the network takes; tiles start at multiples of `sizes.multiple`, so that windows stay
            aligned.
        scale: output size over input size.
        progress: called after each tile with (done, total).

    Returns:
        `[N, C', H * scale, W * scale]`.

    Raises:
        InputError: the tile leaves nothing between its overlaps, or is smaller than the network takes.
        FxptqError: the network's output is not `scale` times its input.
    """
    (rows, columns), padded = _tiling(x, tile, sizes)
    strides = [(side - 2 * overlap) // sizes.multiple * sizes.multiple for side in (rows, columns)]
    if overlap < 0 or min(strides) < 1:
        least = max(-(-(2 * overlap + sizes.multiple) // sizes.multiple) * sizes.multiple, sizes.least)
        raise InputError(
            f"a tile of {min(rows, columns)} with an overlap of {overlap} at each side leaves nothing; give {least} or "
            "more"
        )
    spans = list(product(_spans(padded.shape[2], rows, strides[0]), _spans(padded.shape[3], columns, strides[1])))
    result = padded.new_empty(0)
    for done, ((high, keep_high), (wide, keep_wide)) in enumerate(spans, start=1):
        part = padded[:, :, high, wide]
        output = _checked(run(part), part, scale)
        if done == 1:  # only now are its channels and type known
            result = output.new_empty((*output.shape[:2], padded.shape[2] * scale, padded.shape[3] * scale))
        result[:, :, _scaled(keep_high, scale), _scaled(keep_wide, scale)] = output[
            :, :, _scaled(keep_high, scale, high.start), _scaled(keep_wide, scale, wide.start)
        ]
        if progress is not None:
            progress(done, len(spans))
    return result[:, :, : x.shape[2] * scale, : x.shape[3] * scale]


def _tiling(x: Tensor, tile: int, sizes: Sizes) -> tuple[Size, Tensor]:
    """The size of the tiles, and the picture padded so that they cover it."""
    height, width = x.shape[2:]
    if sizes.fixed is not None:
        return sizes.fixed, reflected(x, (max(height, sizes.fixed[0]), max(width, sizes.fixed[1])))
    side = tile // sizes.multiple * sizes.multiple
    if 0 < side < sizes.least:
        raise InputError(f"a tile of {tile} is too small: the network takes {sizes}; give {sizes.least} or more")
    rows, columns = sizes.at_least(height, width)
    if sizes.square and max(rows, columns) > side:  # an axis that one tile spans must be as long as the tile
        rows, columns = (max(-(-length // sizes.multiple) * sizes.multiple, side) for length in (height, width))
    return (side, side), reflected(x, (rows, columns))


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


def _checked(output: Tensor, given: Tensor, scale: int) -> Tensor:
    expected = (given.shape[0], given.shape[2] * scale, given.shape[3] * scale)
    if output.ndim != 4 or (output.shape[0], *output.shape[2:]) != expected:
        raise FxptqError(
            f"the network turned {tuple(given.shape)} into {tuple(output.shape)}; expected {expected[1]}x{expected[2]} "
            f"(rows x columns) at scale {scale}: check the recipe's scale"
        )
    return output
