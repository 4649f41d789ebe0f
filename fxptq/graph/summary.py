"""The sites of a quantized network in one line, and as a table for notebooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from fxptq.graph.sites import Site


def in_one_line(sites: Sequence[Site]) -> str:
    """How many sites have which bits: "6 sites at W4A4, 2 at W8A8, 1 in float"."""
    counts = Counter("float" if site.reason else "W{}A{}".format(*site.bits) for site in sites)
    order = sorted(counts, key=lambda bits: (bits == "float", -counts[bits], bits))
    parts = [f"{counts[bits]} {'in' if bits == 'float' else 'at'} {bits}" for bits in order]
    if not parts:
        return "no sites"
    first, *others = parts
    number, rest = first.split(" ", 1)
    return ", ".join([f"{number} {'site' if number == '1' else 'sites'} {rest}", *others])


def as_html(title: str, sites: Sequence[Site]) -> str:
    """The table of sites as HTML without scripts: name, kind, role, bits, share of the multiplications."""
    total = sum(site.macs for site in sites) or 1
    rows = "".join(
        f"<tr><td style='text-align:left'><code>{escape(site.name)}</code></td><td>{escape(site.kind)}</td>"
        f"<td>{escape(site.role)}</td><td>{_bits(site)}</td><td>{100 * site.macs / total:.1f} %</td></tr>"
        for site in sites
    )
    return (
        f"<details open><summary><b>{escape(title)}</b>: {escape(in_one_line(sites))}</summary>"
        "<div style='max-height:24em;overflow:auto'><table><thead><tr><th style='text-align:left'>site</th>"
        "<th>kind</th><th>role</th><th>bits</th><th>multiplications</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _bits(site: Site) -> str:
    if site.reason:
        return f"<span title='{escape(site.reason, quote=True)}'>float</span>"
    return "W{}A{}".format(*site.bits)
