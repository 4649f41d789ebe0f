"""Running a network on pictures as people have them: padded to a size that it takes, in tiles, in its own range.

Promises: a picture comes back in the form in which it was given (a Pillow image, an array or a tensor), `scale` times
as high and wide. Of a network of several outputs the restored picture is taken, see fxptq.graph.outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from fxptq.errors import FxptqError, InputError, MemoryEndedError
from fxptq.evaluate.tiles import OVERLAP, Run, run_padded, run_tiled
from fxptq.evaluate.tiling import Tiling, by_memory, is_memory_end
from fxptq.formats import PictureFormat
from fxptq.graph.outputs import PictureOutput, picture_output
from fxptq.io.images import in_srgb
from fxptq.io.picture import describes

Picture = TypeVar("Picture", Image.Image, npt.NDArray[Any], Tensor)

WHITE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
"""The value of white in arrays of whole numbers; in arrays of floating point it is 1."""


class NetworkRun:
    """A network on its device, for pictures on the CPU; of several outputs the restored picture.

    Args:
        model: the network.
        device: where the network is.
        scale: the scale that the picture has among several outputs; None for any.
    """

    def __init__(self, model: Callable[[Tensor], Any], device: torch.device, scale: int | None = None) -> None:
        self._model, self._device, self._scale = model, device, scale
        self._chosen: PictureOutput | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H * scale, W * scale].

        Raises:
            MemoryEndedError: there is not enough memory for the picture.
            FxptqError: the network fails otherwise (a size that it does not take).
            InputError: no output of the network is a picture.
        """
        try:
            output = self._model(x.to(self._device))
        except FxptqError as error:
            if is_memory_end(error):  # in the capture of another size
                raise MemoryEndedError(str(error)) from error
            raise
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            kind = MemoryEndedError if is_memory_end(error) else FxptqError
            raise kind(f"the network failed on an input of shape {tuple(x.shape)}: {reason}") from error
        if isinstance(output, Tensor):
            return output.cpu()
        if self._chosen is None:
            self._chosen = picture_output(x, output, self._scale)
        return self._chosen.pick(output).cpu()


def fitted(run: Run, pictures: PictureFormat, tile: int = 0) -> Run:
    """`run` for pictures of any size: padded to a size that the network takes; in tiles if `tile` is not 0.

    A network of one size runs in tiles of that size, whatever `tile` is.
    """
    sizes, scale = pictures.sizes, pictures.scale
    if sizes.fixed is not None:
        overlap = min(OVERLAP, min(sizes.fixed) // 4)
        return lambda x: run_tiled(run, x, tile=0, overlap=overlap, sizes=sizes, scale=scale)
    if tile:
        return lambda x: run_tiled(run, x, tile=tile, sizes=sizes, scale=scale)
    return lambda x: run_padded(run, x, sizes=sizes, scale=scale)


def restore(model: nn.Module, picture: Picture, pictures: PictureFormat, tiling: Tiling | None = None) -> Picture:
    """Restores one picture.

    Args:
        model: the network, in evaluation mode.
        picture: a Pillow image; an array [H, W] or [H, W, C], of uint8, uint16 or floating point with white at 1; or a
            tensor [N, C, H, W] in the network's own range.
        pictures: what the network takes and gives.
        tiling: how the picture is cut into tiles; None to decide by the free memory.

    Returns:
        The restored picture, of the type and dtype of `picture`. Whole numbers are rounded and clipped; floating point
        is what the network gives. A grey picture goes through a network of colour as three equal channels, and their
        mean comes back. An image with a palette comes back in RGB; transparency is enlarged by bicubic interpolation. A
        colour profile stays with the image if it fits the result; CMYK becomes sRGB by its profile.

    Raises:
        InputError: the picture or the tile is unfit.
        FxptqError: the network fails, or gives no finite picture of the right size.
    """
    own, device = _in_its_own_type(model, pictures.scale)
    run = _finite(by_memory(own, pictures, tiling or Tiling(), device))
    if isinstance(picture, Image.Image):
        return _image(run, picture, pictures)
    if isinstance(picture, np.ndarray):
        return _array(run, picture, pictures)
    if isinstance(picture, Tensor):
        return _tensor(run, picture, pictures)
    raise InputError(
        f"the picture is of type {type(picture).__name__}; expected a Pillow image, an array [H, W, C], or a tensor "
        "[1, C, H, W]"
    )


def _in_its_own_type(model: nn.Module, scale: int) -> tuple[Run, torch.device]:
    """The network where it is and in the type of its weights, for pictures of float32 on the CPU; and its device."""
    tensor = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0))
    run = NetworkRun(model, tensor.device, scale)
    return lambda x: run(x.to(tensor.dtype)).float(), tensor.device


def _finite(run: Run) -> Run:
    """`run`, refused where it makes NaN or infinite values of a picture that has none."""

    def checked(x: Tensor) -> Tensor:
        y = run(x)
        if bool(x.isfinite().all()) and not bool(y.isfinite().all()):
            raise FxptqError("the network returned values that are not finite; no picture can be made of them")
        return y

    return checked


def _tensor(run: Run, x: Tensor, pictures: PictureFormat) -> Tensor:
    if x.dim() != 4 or 0 in x.shape or not x.is_floating_point():
        raise InputError(
            f"the picture has shape {tuple(x.shape)}, {x.dtype}; expected [1, {pictures.channels}, H, W] of floating "
            f"point, white at {pictures.value_range:g}"
        )
    with torch.no_grad():
        return run(x.detach().cpu()).to(x)


def _array(run: Run, array: npt.NDArray[Any], pictures: PictureFormat) -> npt.NDArray[Any]:
    planes = array[:, :, None] if array.ndim == 2 else array
    grey = planes.ndim == 3 and planes.shape[2] == 1
    if planes.ndim != 3 or 0 in planes.shape or not (grey or planes.shape[2] == pictures.channels):
        raise InputError(
            f"the picture has shape {array.shape}; expected [H, W, {pictures.channels}]"
            + (" or grey" if pictures.channels == 3 else "")
        )
    kind = array.dtype.newbyteorder("=")
    if kind not in WHITE and kind.kind != "f":
        raise InputError(f"the picture is of {array.dtype}; expected uint8, uint16, or floating point with white at 1")
    white = WHITE.get(kind, 1.0)
    values = np.ascontiguousarray(planes.transpose(2, 0, 1), dtype=np.float32)
    x = (torch.from_numpy(values)[None] / (white / pictures.value_range)).expand(-1, pictures.channels, -1, -1)
    with torch.no_grad():
        output = run(x.contiguous())[0]
    if grey:
        output = output.mean(0, keepdim=True)
    levels = output * (white / pictures.value_range)
    if kind in WHITE:
        levels = levels.clamp(0, white).round()
    restored = levels.permute(1, 2, 0).numpy().astype(array.dtype)
    return restored[:, :, 0] if array.ndim == 2 else restored


def _image(run: Run, image: Image.Image, pictures: PictureFormat) -> Image.Image:
    if image.mode in ("I", "F", "LAB"):
        raise InputError(f"the image has mode {image.mode}; expected grey or colour of 8 bits, or grey of 16 bits")
    if image.mode.startswith("I;16"):
        return Image.fromarray(_array(run, np.asarray(image).astype(np.uint16), pictures))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    grey = image.mode in ("1", "L", "LA")
    if pictures.channels == 1 and not grey:
        raise InputError(f"the image has mode {image.mode}, and the network takes grey: give image.convert('L')")
    found = image.info.get("icc_profile")
    profile = found if isinstance(found, bytes) else b""
    colours = None if grey else in_srgb(image, profile)
    restored = Image.fromarray(_array(run, np.array(colours or image.convert("L" if grey else "RGB")), pictures))
    if alpha is not None:
        restored.putalpha(alpha.resize(restored.size, Image.Resampling.BICUBIC))
    if profile and describes(profile, 1 if grey else 3):
        restored.info["icc_profile"] = profile  # Pillow writes it into the file
    return restored
