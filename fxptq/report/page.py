"""The report of a run as one HTML page that needs no other file: scores, bytes, times, and every site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from fxptq.commands.quantize import Outcome
from fxptq.data.tasks import TITLES
from fxptq.io.files import write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
"""


def write(outcome: Outcome, path: Path) -> Path:
    """Writes the page atomically and returns its path.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, _page(outcome))
    return path


def _page(outcome: Outcome) -> str:
    meta = outcome.model.meta
    title = f"{outcome.source.recipe.title}, W{meta.bits_w}A{meta.bits_a}"
    scores, reported = outcome.scores, outcome.scores["fp"][0].reported
    quality = [
        [first.name, *(" / ".join(found[index].mean.shown(name, 3) for name in reported) for found in scores.values())]
        for index, first in enumerate(scores["fp"])
    ]
    pictures = [
        [first.name, picture, *(found[index].images[picture].shown(reported[0], 3) for found in scores.values())]
        for index, first in enumerate(scores["fp"])
        for picture in first.images
    ]
    parts = outcome.sizes
    size = [[name, f"{getattr(parts, name):,}"] for name in ("codes", "bounds", "floats", "metadata", "header")]
    size += [["checkpoint", f"{parts.total:,}"], ["float32 parameters", f"{outcome.fp32_bytes:,}"]]
    sites = [
        [site.name, site.kind, site.role, site.reason or "/".join(map(str, site.bits)), f"{site.macs:,}"]
        for site in outcome.model.sites
    ]
    return "".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="fxptq">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
            f"<p>Calibrated on {escape(meta.calibration)}. Seed {meta.seed}. {escape(meta.created_by)}.</p>",
            f"<h2>Quality, {' / '.join(TITLES[name] for name in reported)}</h2>",
            _table(["set", *scores], quality),
            "<h2>Bytes on disk</h2>",
            _table(["part", "bytes"], size),
            "<h2>Seconds</h2>",
            _table(["stage", "seconds"], [[stage, f"{taken:.1f}"] for stage, taken in outcome.seconds.items()]),
            f"<h2>Pictures, {TITLES[reported[0]]}</h2>",
            _table(["set", "picture", *scores], pictures),
            "<h2>Sites</h2>",
            _table(["name", "kind", "role", "bits w/a, or why in float", "MACs"], sites),
            "</html>\n",
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(text: str) -> str:
    number = text[:1].isdigit()
    return f'<td class="n">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"
