"""The network as SVG: every site a box that leads to its row, coloured by bits, by noise, or by sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxptq.report.content import SiteRow
from fxptq.report.html import Markup, element, join, scrolling
from fxptq.report.layout import HEIGHT, WIDTH, Box, Layout

LEVELS = 5  # colours of a figure that is no number of bits


def drawing(layout: Layout, sites: Sequence[SiteRow]) -> Markup:
    """The drawing with its choice of colours and their legend."""
    noise, sensitivity = _levels(sites, lambda s: _negative(s.snr_db)), _levels(sites, lambda s: s.sensitivity)
    boxes = [_box(box, sites, noise, sensitivity) for box in layout.boxes]
    frames = [
        join(
            [
                element("rect", x=b.x, y=b.y, width=b.width, height=b.height, rx=6, class_="block"),
                element("text", b.label, x=b.x + 4, y=b.y + b.height + 12, class_="block-label"),
            ]
        )
        for b in layout.blocks
        if b.label
    ]
    lines = [element("path", d=line, class_="flow") for line in layout.lines]
    svg = element(
        "svg",
        *frames,
        *lines,
        *boxes,
        viewBox=f"0 0 {layout.width:g} {layout.height:g}",
        width=f"{layout.width:g}",
        height=f"{layout.height:g}",
        id="network-drawing",
        data_by="w",
        role="group",
        aria_label=f"The network: {len(sites)} sites in the order of execution",
    )
    return join([_choice(any(noise), any(sensitivity)), scrolling(svg, "Drawing of the network", tall=True)])


def _negative(snr_db: float | None) -> float | None:
    return None if snr_db is None else -snr_db


def _levels(sites: Sequence[SiteRow], figure: Callable[[SiteRow], float | None]) -> list[int]:
    """For each site the fifth of the sites in which its figure lies, from 1 (least) to 5; 0 for no figure."""
    known = sorted(value for site in sites if (value := figure(site)) is not None)
    found = []
    for site in sites:
        value = figure(site)
        below = 0 if value is None else sum(other < value for other in known)
        found.append(0 if value is None else 1 + below * LEVELS // len(known))
    return found


def _box(box: Box, sites: Sequence[SiteRow], noise: Sequence[int], sensitivity: Sequence[int]) -> Markup:
    if box.site is None:
        if len(box.label) > 3:
            shape = element(
                "rect", x=box.x - WIDTH / 2, y=box.y - HEIGHT / 2, width=WIDTH, height=HEIGHT, rx=HEIGHT / 2
            )
        else:
            shape = element("circle", cx=box.x, cy=box.y, r=10)
        text = element("text", box.label, x=box.x, y=box.y + 4, text_anchor="middle")
        return element("g", shape, text, class_="meeting")
    site = sites[box.site]
    w, a = site.bits or ("float", "float")
    bits = "float" if site.bits is None else f"W{w}A{a}"
    told = f"{site.name}, {site.kind}, {bits}" + (f", {site.reason}" if site.reason else "")
    return element(
        "a",
        element("title", told),
        element("rect", x=box.x - WIDTH / 2, y=box.y - HEIGHT / 2, width=WIDTH, height=HEIGHT, rx=4),
        element("text", box.label, x=box.x, y=box.y - 2, text_anchor="middle"),
        element("text", bits, x=box.x, y=box.y + 10, text_anchor="middle", class_="bits"),
        href=f"#site{box.site}",
        class_="site",
        data_w=w,
        data_a=a,
        data_n=noise[box.site] or None,
        data_s=sensitivity[box.site] or None,
    )


def _choice(noise: bool, sensitivity: bool) -> Markup:
    ways = [("w", "bits of weights"), ("a", "bits of activations")]
    ways += [("n", "noise of the operands")] if noise else []
    ways += [("s", "sensitivity")] if sensitivity else []
    buttons = [
        element(
            "label",
            element("input", type="radio", name="colour-by", value=key, checked=key == "w"),
            f" {name}",
        )
        for key, name in ways
    ]
    keys = [element("span", f"{bits}", class_="key", data_w=bits) for bits in range(2, 9)]
    keys += [element("span", "float", class_="key", data_w="float")]
    levels = [element("span", name, class_="key", data_n=i) for i, name in enumerate(("least", "", "", "", "most"), 1)]
    return element(
        "fieldset",
        element("legend", "Colour by"),
        *buttons,
        element("div", *keys, class_="legend for-bits"),
        element("div", *levels, class_="legend for-levels"),
    )
