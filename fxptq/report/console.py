"""Results on the terminal, as rich tables. Importing this module loads no torch: a list of recipes needs none."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fxptq.data.tasks import TITLES

if TYPE_CHECKING:
    from fxptq.bench.measure import Bench
    from fxptq.commands.compare import Comparison
    from fxptq.commands.doctor import Check
    from fxptq.commands.inspect import Contents
    from fxptq.commands.passes import PassInfo
    from fxptq.commands.quantize import Outcome
    from fxptq.evaluate.score import SetScore
    from fxptq.export.write import Exported
    from fxptq.graph import Site
    from fxptq.io.weights import WeightsRow
    from fxptq.recipe import Recipe

STAGES = {"fp": "full precision", "dobi": "bounds alone", "final": "quantized"}
"""How the stages of a run are called in tables."""

_MOST_WIDTHS = 12
"""Pairs of widths and kind up to which each has a line of its own."""


def _table(title: str, *columns: str, right: int = 0) -> Table:
    """A table whose last `right` columns are numbers; a cell too long for the terminal goes on in the next line."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if index >= len(columns) - right else "left")
    return table


def show_quantized(console: Console, outcome: Outcome, report: Path | None) -> None:
    """What `quantize` did: quality by stage, bytes, seconds, what stayed in float, where the files are."""
    meta = outcome.model.meta
    reported = outcome.scores["fp"][0].reported
    if outcome.inferred:
        console.print(f"{outcome.source.name} is taken for: {outcome.inferred}")
    quality = _table(
        f"{outcome.source.name}, W{meta.bits_w}A{meta.bits_a}: {' / '.join(TITLES[name] for name in reported)}",
        "set",
        *(STAGES[stage] for stage in outcome.scores),
        right=len(outcome.scores),
    )
    for index, first in enumerate(outcome.scores["fp"]):
        means = [found[index].mean for found in outcome.scores.values()]
        quality.add_row(first.name, *(" / ".join(mean.shown(name) for name in reported) for mean in means))
    console.print(quality)
    parts = outcome.sizes
    size = _table("Bytes on disk", "part", "bytes", right=1)
    size.add_row("float32 parameters", f"{outcome.fp32_bytes:,}")
    for name in ("codes", "bounds", "floats", "metadata", "header"):
        size.add_row(f"  {name}", f"{getattr(parts, name):,}")
    size.add_row("checkpoint", f"{parts.total:,} ({outcome.fp32_bytes / parts.total:.2f}x smaller)")
    console.print(size)
    times = _table("Time", "stage", "seconds", right=1)
    for stage, seconds in outcome.seconds.items():
        times.add_row(stage, f"{seconds:.1f}")
    console.print(times)
    show_bits(console, outcome.model.sites)
    for warning in outcome.model.quality.warnings:
        console.print(f"warning     {warning}")
    console.print(f"peak memory {outcome.peak_mb:,.0f} MB")
    console.print(f"checkpoint  {outcome.out}")
    if report is not None:
        console.print(f"report      {report}")
    console.print(f"next        fxptq upscale {shlex.join([str(outcome.out), *outcome.opened_with])} IN OUT")


def show_bits(console: Console, sites: Sequence[Site]) -> None:
    """How many sites have which bits, and what stayed in float, by name and reason."""
    from fxptq.graph.sites import mean_bits  # noqa: PLC0415  # a list of recipes needs no torch

    widths = Counter((site.bits, site.kind) for site in sites if not site.reason)
    if len(widths) <= _MOST_WIDTHS:
        for ((w, a), kind), count in sorted(widths.items(), key=lambda item: str(item[0])):
            console.print(f"{count:4d} {kind} sites at W{w}A{a}")
    else:
        for kind in dict.fromkeys(kind for _, kind in widths):
            found = {bits: count for (bits, own), count in widths.items() if own == kind}
            ranges = ["-".join(dict.fromkeys((str(min(one)), str(max(one))))) for one in zip(*found, strict=True)]
            console.print(f"{sum(found.values()):4d} {kind} sites at W{ranges[0]} A{ranges[1]}")
        weights, activations = mean_bits(sites)
        console.print(
            f"     on average {weights:.2f} bits for weights (by number), {activations:.2f} for activations (by work)"
        )
    floats = [site for site in sites if site.reason]
    console.print(f"{len(floats):4d} sites in float" + (":" if floats else ""))
    for site in floats:
        console.print(f"       {site.name}: {site.reason}")


def show_scores(console: Console, scores: Sequence[SetScore]) -> None:
    """Scores of each set, and of each of its pictures; the figures of the task come first."""
    for score in scores:
        figures = list(dict.fromkeys([*score.reported, *score.mean.figures]))
        table = _table(score.name, "picture", *(TITLES[figure] for figure in figures), right=len(figures))
        for name, one in score.images.items():
            table.add_row(name, *(one.shown(figure) for figure in figures))
        table.add_section()
        table.add_row("mean", *(score.mean.shown(figure) for figure in figures))
        console.print(table)


def show_comparison(console: Console, comparison: Comparison, report: Path) -> None:
    """What `compare` found: the scores of both networks on each set, their bytes, and where the page is."""
    first, second = comparison.scores.values()
    table = _table("Comparison", "set", "figure", *comparison.scores, "change", right=3)
    for one, other in zip(first, second, strict=True):
        for figure in one.reported:
            change = other.mean.figures[figure] - one.mean.figures[figure]
            digits = 4 if figure == "ssim_y" else 2
            shown = (one.mean.shown(figure), other.mean.shown(figure), f"{change:+.{digits}f}")
            table.add_row(one.name, TITLES[figure], *shown)
    table.add_row("", "bytes", *(f"{side.nbytes:,}" for side in (comparison.first, comparison.second)), "")
    console.print(table)
    console.print(f"report      {report}")


def show_sites(console: Console, sites: Sequence[Site]) -> None:
    """The table of sites."""
    total = sum(site.macs for site in sites) or 1
    table = _table("Sites", "name", "kind", "role", "shapes", "bits w/a", "MACs", "share", right=2)
    for site in sites:
        shapes = " x ".join(str(list(site.shapes[operand.slot])) for operand in site.operands)
        bits = "float" if site.reason else "/".join(map(str, site.bits))
        role = site.role + (f", {site.edge}" if site.edge else "")
        table.add_row(site.name, site.kind, role, shapes, bits, f"{site.macs:,}", f"{100 * site.macs / total:.2f} %")
    console.print(table)
    show_bits(console, sites)


def show_tensors(console: Console, contents: Contents) -> None:
    """The tensors of a checkpoint's file, and the bytes of its parts."""
    table = _table("Tensors", "name", "holds", "shape", "bits", "type", "scale", "bytes", right=2)
    for one in contents.tensors:
        scale = "" if one.scale is None else " to ".join(dict.fromkeys(f"{end:.4g}" for end in one.scale))
        bits = "" if one.bits is None else str(one.bits)
        table.add_row(one.name, one.holds, str(list(one.shape)), bits, one.dtype, scale, f"{one.bytes:,}")
    console.print(table)
    sizes = contents.sizes
    parts = _table("Bytes on disk", "part", "bytes", right=1)
    for name in ("codes", "bounds", "floats", "metadata", "header", "total"):
        parts.add_row(name, f"{getattr(sizes, name):,}")
    console.print(parts)


def show_exported(console: Console, exported: Exported) -> None:
    """What an exported file holds, for which sizes it is, and how its outputs compare with the simulation."""
    free = [name for axis, name in ((0, "batch"), (2, "height"), (3, "width")) if axis in exported.free]
    console.print(f"{exported.path}: {exported.nbytes:,} bytes, {' and '.join(free) or 'no size'} free")
    onnx = exported.onnx
    if onnx is None:
        console.print("to load it: import fxptq.kernels.ops, then torch.export.load")
        return
    for bits, count in onnx.wider.items():
        console.print(
            f"{count} weights of {bits} bits take {4 if bits < 4 else 8} bits a code in the file; values are the same"
        )
    if onnx.in_float:
        reasons = Counter(reason for text in onnx.in_float.values() for reason in text.split("; "))
        worst = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        console.print(f"runtimes compute {len(onnx.in_float)} of {onnx.sites} sites in float: {worst}")
    if exported.comparisons:
        table = _table("ONNX Runtime beside the simulation", "input", "PSNR dB", "largest difference of 255", right=2)
        for one in exported.comparisons:
            psnr = "equal" if one.largest == 0 else f"{one.psnr:.1f}"
            table.add_row("x".join(map(str, one.shape)), psnr, f"{255 * one.largest:.4f}")
        console.print(table)
    else:
        console.print('not compared: ONNX Runtime is missing; pip install "fxptq[export]"')
    if exported.unfit:
        sizes = ", ".join(f"{height}x{width}" for height, width in exported.unfit)
        console.print(f"not for {sizes}: there the network has another graph; export it with --size")


def show_bench(console: Console, bench: Bench) -> None:
    """Milliseconds and memory of each way to run a network, and how many times faster than eager it is."""
    title = f"{bench.size}, {bench.threads} thread{'s' * (bench.threads > 1)}, integer kernels: {bench.kernels}"
    table = _table(title, "way", "ms", "speed-up", "ready after s", "peak MB", "of it working MB", right=5)
    eager = next((row.ms for row in bench.rows if row.name == "eager-fp32"), None)
    for row in bench.rows:
        if row.ms is None:
            table.add_row(row.name, "-")
        else:
            memory = [f"{mb:,.0f}" if mb is not None else "-" for mb in (row.peak_mb, row.working_mb)]
            speed_up = f"{eager / row.ms:.2f}x" if eager else ""
            table.add_row(row.name, f"{row.ms:.1f}", speed_up, f"{row.prepare_s:.0f}", *memory)
    console.print(table)
    if verdict := _verdict(bench):
        console.print(verdict)
    for row in bench.rows:
        if row.note:
            console.print(f"{row.name}: {row.note}")


def _verdict(bench: Bench) -> str:
    """How fast the integers are beside the fastest float way; empty where either has no figure."""
    ms = {row.name: row.ms for row in bench.rows if row.ms is not None}
    rivals = [name for name in ms if name.endswith(("fp32", "bf16"))]
    if "fxptq-int" not in ms or not rivals:
        return ""
    best = min(rivals, key=lambda name: ms[name])
    ratio = ms[best] / ms["fxptq-int"]
    verdict = f"{ratio:.2f} times as fast as" if ratio >= 1 else f"SLOWER ({ratio:.2f}x) than"
    return f"fxptq-int is {verdict} {best}, the fastest float here ({bench.kernels} kernels)"


WEIGHTS = {"bundled": "at once", "cached": "at once (downloaded)", "absent": "after a download"}
"""When a recipe runs, by the state of its weights."""


def show_recipes(console: Console, recipes: Sequence[Recipe], weights: Sequence[WeightsRow]) -> None:
    """The bundled recipes, and which of them run without a download."""
    states = {row.name: row for row in weights}
    table = _table("Recipes", "name", "network", "runs", "presets")
    for recipe in recipes:
        row = states.get(recipe.name)
        runs = "with a network of yours" if row is None else WEIGHTS[row.state]
        table.add_row(recipe.name, recipe.title, runs, ", ".join(recipe.preset_names))
    console.print(table)
    absent = [row for row in weights if row.state == "absent"]
    if absent:
        fetched = next((row for row in absent if row.url), None)
        if fetched is not None:
            console.print(f"download weights, for example: fxptq weights --download {fetched.name}")


def show_passes(console: Console, passes: Sequence[PassInfo], *, settings: bool) -> None:
    """The passes with their purposes; of a single one the settings, too."""
    if not settings:
        table = _table("Passes", "name", "purpose")
        for one in passes:
            table.add_row(one.name, one.purpose)
        console.print(table)
        console.print("fxptq passes NAME lists the settings of a pass.")
        return
    for one in passes:
        console.print(one.purpose)
        table = _table(f"Settings of {one.name}", "name", "default", "meaning")
        for setting in one.settings:
            table.add_row(setting.name, setting.default, setting.meaning)
        if one.settings:
            console.print(table)
        else:
            console.print(f"The pass {one.name} has no settings.")


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """What `doctor` found, with advice below."""
    table = _table("This machine", "", "state", "found")
    for check in checks:
        table.add_row(check.subject, check.state, check.found)
    console.print(table)
    for check in checks:
        if check.advice:
            console.print(f"{check.subject}: {check.advice}")


def show_weights(console: Console, rows: Sequence[WeightsRow]) -> None:
    """Which weights are where; paths and addresses stand below the table, each whole on its line, to be copied."""
    table = _table("Weights", "recipe", "state", "bytes", "sha256")
    for row in rows:
        table.add_row(row.name, row.state, f"{row.bytes:,}" if row.bytes else "", row.checksum)
    console.print(table)
    for row in rows:
        console.print(f"{row.name}")
        if row.path is not None:
            console.print(f"  {'belongs at' if row.state == 'absent' else 'is at'} {row.path}")
        if row.url:
            console.print(f"  is published at {row.url}")
