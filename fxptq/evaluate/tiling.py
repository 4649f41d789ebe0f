"""How a picture is cut into tiles: as asked, or by the memory that is free; smaller where memory ends all the same.

Promises: a picture runs whole where there is memory for it, so that no seam is made without need; the memory that the
network needs is measured on a small input, not guessed.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.errors import FxptqError, InputError, MemoryEndedError
from fxptq.evaluate.tiles import OVERLAP, Progress, Run, run_padded, run_tiled
from fxptq.evaluate.working import working_bytes
from fxptq.formats import PictureFormat
from fxptq.memory import free_bytes, return_freed_memory
from fxptq.sizes import Sizes

_log = logging.getLogger("fxptq")

_PROBE = 64
"""Side of the input, in pixels, that the memory of a network is measured with."""
_SMALL = 160 * 160
"""Pixels of a picture that runs whole without any measurement."""
_SHARE = 0.6
"""Of the free memory is used at most: other programs take some meanwhile."""
_SCRATCH = 1.5
"""Operators take memory of their own, which no tensor shows: the tensors' memory is multiplied by this."""
_ENDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc")


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into tiles.

    Attributes:
        tile: height and width of a tile in input pixels; 0 for the whole picture; None to decide by the free memory.
        overlap: context in input pixels that neighbouring tiles share on each side.
        share: the part of the free memory that this process may use.

    Raises:
        InputError: a number below 0.
    """

    tile: int | None = None
    overlap: int = OVERLAP
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 0:
            raise InputError(f"the tile is {self.tile}; expected 0 for the whole picture, or a size in pixels")
        if self.overlap < 0:
            raise InputError(f"the overlap is {self.overlap}; expected a number of pixels from 0")


class TiledRun:
    """A network for pictures of any size, on the CPU: padded, and in tiles as `tiling` says.

    Once memory has ended, later pictures get the smaller tiles at once.

    Args:
        run: the network, [N, C, H, W] to [N, C', H * scale, W * scale].
        pictures: the pictures of the network.
        tiling: how to cut.
        device: where the network is; its free memory counts.
        free: the free memory of the device in bytes, None where nobody knows.
    """

    def __init__(
        self,
        run: Run,
        pictures: PictureFormat,
        tiling: Tiling,
        device: torch.device,
        free: Callable[[], int | None] | None = None,
    ) -> None:
        self._run, self._pictures, self._tiling, self._device = run, pictures, tiling, device
        self._free = free or (lambda: free_on(device))
        self._most = math.inf  # pixels a side that memory has sufficed for
        self._needs = 0.0  # bytes for each pixel, once measured

    def __call__(self, x: Tensor, finish: Run | None = None, progress: Progress | None = None) -> Tensor:
        """The output of the network for a picture.

        Args:
            x: [N, C, H, W].
            finish: applied to the output of each tile, pixel by pixel (rounding to bytes saves memory).
            progress: called after each tile with (done, total).

        Raises:
            InputError: the tile leaves nothing between its overlaps, or is smaller than the network takes.
            MemoryEndedError: memory does not suffice for the smallest tile.
            FxptqError: the network fails otherwise.
        """
        tile = self._tile(x)
        while True:
            try:
                return self._tiled(x, tile, finish, progress)
            except (MemoryEndedError, MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryEndedError) and not is_memory_end(error):
                    raise
                smaller = self._smaller(tile or max(x.shape[2:]))
                if smaller is None:
                    raise _ended(error, x) from error
                tile = self._most = smaller
            gc.collect()
            return_freed_memory()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            _log.warning("memory has ended: going on with tiles of %d pixels", tile)

    def _tiled(self, x: Tensor, tile: int, finish: Run | None, progress: Progress | None) -> Tensor:
        sizes, scale, overlap = self._pictures.sizes, self._pictures.scale, self._tiling.overlap

        def run(part: Tensor) -> Tensor:
            output = self._run(part)
            return output if finish is None else finish(output)

        if sizes.fixed is not None:
            overlap = min(overlap, min(sizes.fixed) // 4)
            return run_tiled(run, x, tile=0, overlap=overlap, sizes=sizes, scale=scale, progress=progress)
        if tile:
            return run_tiled(run, x, tile=tile, overlap=overlap, sizes=sizes, scale=scale, progress=progress)
        output = run_padded(run, x, sizes=sizes, scale=scale)
        if progress is not None:
            progress(1, 1)
        return output

    def _tile(self, x: Tensor) -> int:
        """The tile for a picture, 0 for the whole."""
        asked = self._tiling.tile
        side = self._by_memory(x) if asked is None else asked
        longest = max(x.shape[2:])
        return int(min(side or longest, self._most)) if longest > self._most else side

    def _by_memory(self, x: Tensor) -> int:
        pixels = x.shape[2] * x.shape[3]
        if pixels <= _SMALL or self._pictures.sizes.fixed is not None:
            return 0
        free = self._free()
        if free is None:
            return 0
        self._needs = self._needs or self._measured(x)
        useful = free * self._tiling.share * _SHARE
        if pixels * self._needs <= useful:
            return 0
        multiple = self._pictures.sizes.multiple
        return max(math.isqrt(int(useful / self._needs)) // multiple * multiple, self._least)

    def _measured(self, x: Tensor) -> float:
        """Bytes that the network needs for each pixel."""
        height, width = self._pictures.sizes.near(_PROBE, _PROBE)
        probe = x[:1, :, :height, :width]
        probe = self._pictures.sizes.padded(probe)
        self._run(probe)  # what happens once (a capture, a timing, a compilation) is not counted
        return _SCRATCH * working_bytes(lambda: self._run(probe), self._device) / (probe.shape[2] * probe.shape[3])

    @property
    def _least(self) -> int:
        """The smallest tile that leaves something between its overlaps."""
        return least_tile(self._pictures.sizes, self._tiling.overlap)

    def _smaller(self, side: int) -> int | None:
        """The next tile to try where one of `side` pixels was too large; None where there is none."""
        if self._pictures.sizes.fixed is not None or side <= self._least:
            return None
        multiple = self._pictures.sizes.multiple
        return max(side // 2 // multiple * multiple, self._least)


def _ended(error: Exception, x: Tensor) -> MemoryEndedError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return MemoryEndedError(f"memory does not suffice for {x.shape[3]}x{x.shape[2]} pixels in any tiles: {reason}")


def by_memory(run: Run, pictures: PictureFormat, tiling: Tiling, device: torch.device) -> TiledRun:
    """`run` for pictures of any size; see `TiledRun`."""
    return TiledRun(run, pictures, tiling, device)


def least_tile(sizes: Sizes, overlap: int) -> int:
    """The smallest side of a tile that leaves something between its overlaps."""
    return max(-(-(2 * overlap + sizes.multiple) // sizes.multiple) * sizes.multiple, sizes.least)


def free_on(device: torch.device) -> int | None:
    """The free memory of a device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()


def is_memory_end(error: BaseException) -> bool:
    """Whether an error says that memory has ended, itself or as the error behind it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    if isinstance(error, RuntimeError | FxptqError) and any(words in said for words in _ENDS):
        return True
    return error.__cause__ is not None and is_memory_end(error.__cause__)
