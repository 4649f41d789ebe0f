"""Pictures inside the page: PNG as text, and the map of the differences of two pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from fxptq.evaluate.contrast import Patch, Pixels
from fxptq.report.html import Markup, element

FULL = 16  # levels of 0..255 at which the map of differences is brightest

_COLOURS = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)], dtype=np.float64)


def difference(first: Pixels, second: Pixels) -> npt.NDArray[np.uint8]:
    """The mean absolute difference over channels, `[h, w]`, 255 standing for `FULL` levels or more."""
    levels = np.abs(first.astype(np.float64) - second).mean(2)
    brightness: npt.NDArray[np.float64] = np.clip(np.round(levels * (255 / FULL)), 0, 255)
    return brightness.astype(np.uint8)


def palette() -> bytes:
    """The 256 colours of the map: black, violet, orange, pale yellow."""
    at = np.linspace(0, len(_COLOURS) - 1, 256)
    planes = [np.interp(at, np.arange(len(_COLOURS)), channel) for channel in _COLOURS.T]
    return np.round(np.stack(planes, 1)).astype(np.uint8).tobytes()


def encoded(image: npt.NDArray[np.uint8]) -> str:
    """`[h, w, C]`, or `[h, w]` as a map of differences, as a data address."""
    if image.ndim == 2:
        picture = Image.fromarray(image, "P")
        picture.putpalette(palette())
    else:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    with io.BytesIO() as file:
        picture.save(file, format="PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def shown_patches(
    patches: tuple[Patch, ...], first: str, second: str, plain: str, room: int
) -> tuple[list[Markup], int]:
    """The patches with a slider each, and how many there was no room for.

    Args:
        patches: the worst first.
        first: name of the first network.
        second: name of the second network.
        plain: name of the network's input as it is shown.
        room: characters for all pictures; one patch is shown in any case.
    """
    shown: list[Markup] = []
    used = 0
    for number, patch in enumerate(patches):
        names = {"first": first, "second": second, "truth": "ground truth", "plain": plain}
        images = {key: encoded(getattr(patch.layers, key)) for key in names}
        images["map"] = encoded(difference(patch.layers.first, patch.layers.second))
        used += sum(map(len, images.values()))
        if shown and used > room:
            return shown, len(patches) - len(shown)
        shown.append(_slider(number, patch, names, images))
    return shown, 0


def _slider(number: int, patch: Patch, names: dict[str, str], images: dict[str, str]) -> Markup:
    height, width = patch.layers.truth.shape[:2]
    bottom, right = patch.top + height - 1, patch.left + width - 1
    where = f"{patch.picture}, rows {patch.top} to {bottom}, columns {patch.left} to {right}"
    size = {"width": width, "height": height}
    layers = [
        element("img", src=images[key], alt=f"{name} of {where}", data_layer=key, **size) for key, name in names.items()
    ]
    told = f"error map of {where}: black for equal, pale yellow for {FULL} levels or more"
    error_map = element("img", src=images["map"], alt=told, class_="map", data_layer="map", **size)
    names = {**names, "map": "error map"}
    quality = [f"{names[key]} {patch.psnr(key):.2f} dB" for key in ("first", "second", "plain")]
    choices = [
        element(
            "label",
            f"{side} ",
            element(
                "select",
                *(element("option", name, value=key, selected=key == chosen) for key, name in names.items()),
                data_side=side,
            ),
        )
        for side, chosen in (("left", "first"), ("right", "second"))
    ]
    stack = element(
        "div",
        *layers,
        element(
            "input",
            type="range",
            min=0,
            max=100,
            value=50,
            aria_label=f"Border between the left and the right picture, {where}",
        ),
        element("span", class_="handle"),
        element("span", names["first"], class_="tag left"),
        element("span", names["second"], class_="tag right"),
        class_="stack",
    )
    caption = element(
        "figcaption",
        error_map,
        element("strong", f"{number + 1}. {where}"),
        element("br"),
        f"PSNR to the ground truth: {', '.join(quality)}. "
        f"Difference of the networks: {patch.error**0.5:.2f} levels (RMS).",
    )
    return element("figure", stack, element("div", *choices, class_="choices"), caption, class_="patch")
