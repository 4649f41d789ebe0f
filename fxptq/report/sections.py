"""The sections of a page, each a function from the content to markup."""

from __future__ import annotations

from collections.abc import Sequence

from fxptq.data.tasks import TITLES
from fxptq.evaluate.contrast import Range, Tones
from fxptq.evaluate.sets import SAMPLES
from fxptq.report.charts import curve, histogram
from fxptq.report.console import STAGES
from fxptq.report.content import Content, SiteRow
from fxptq.report.drawing import drawing
from fxptq.report.html import Markup, cell, element, join, scrolling, table
from fxptq.report.pictures import FULL, shown_patches

_GENERATED = "Its figures compare networks with each other, and cannot be compared with published ones."

MOST_HISTOGRAMS = 2000  # of a page, so that it stays below 5 MB


def summary(content: Content) -> Markup:
    """The figures that matter, and where the network comes from."""
    first, second = (content.stages[key] for key in content.keys)
    cards = []
    for before, after in zip(first, second, strict=True):
        name = before.reported[0]
        a, b = before.mean.figures[name], after.mean.figures[name]
        cards.append(
            _card(
                f"{TITLES[name]} on {before.name}",
                f"{after.mean.shown(name)}",
                f"{content.first} {before.mean.shown(name)}, {b - a:+.2f}",
            )
        )
    times = content.compared_bytes / content.total if content.total else 0
    cards.append(_card("size", f"{content.total:,} bytes", f"{times:.2f} times smaller than {content.first}"))
    quantized = [site for site in content.sites if not site.reason]
    cards.append(_card("sites", f"{len(quantized)} quantized", f"{len(content.sites) - len(quantized)} in float"))
    if content.seconds:
        cards.append(_card("time", f"{sum(content.seconds.values()):.0f} s", "for the whole run"))
    paragraph = element("p", " ".join(content.intro))
    generated = [
        element("p", "The set ", element("code", SAMPLES), f" is generated. {_GENERATED}")
        for score in first
        if score.name == SAMPLES
    ]
    return join([element("div", *cards, class_="cards"), _warnings(content), paragraph, *generated])


def _warnings(content: Content) -> Markup:
    """What the quality gate warns of; nothing where it does not."""
    if not content.warnings:
        return Markup("")
    return element("ul", *(element("li", f"Warning: {warning}.") for warning in content.warnings), class_="warnings")


def _card(title: str, value: str, note: str) -> Markup:
    return element(
        "div", element("span", title), element("strong", value), element("span", note, class_="note"), class_="card"
    )


def patches(content: Content, room: int) -> Markup:
    """The patches with sliders, as many as there is room for, in characters."""
    if not content.contrast.patches:
        return element("p", "No pictures were kept for this page.")
    plain = "bicubic" if content.stages[content.keys[0]][0].reported[0] == "psnr_y" else "input"
    shown, left_out = shown_patches(content.contrast.patches, content.first, content.second, plain, room)
    notes = [
        f"The patches in which {content.second} differs most from {content.first} come first. Move the border with the "
        "mouse, or with the arrow keys when it has the focus. The error map shows the absolute difference of "
        f"{content.second} and {content.first}, from black (equal) to pale yellow ({FULL} levels of 255 or more)."
    ]
    if left_out:
        notes.append(f"{left_out} more patches are left out, so that the page stays small.")
    if content.contrast.skipped:
        notes.append(
            f"{content.contrast.skipped} pictures have no patch, because their outputs did not fit into memory."
        )
    return join([element("p", " ".join(notes)), element("div", *shown, class_="patches")])


def quality(content: Content) -> Markup:
    """Scores of the sets and of each picture, by stage."""
    first = content.stages[content.keys[0]]
    names = [STAGES.get(stage, stage) for stage in content.stages]
    reported = first[0].reported
    sets = [
        [
            one.name,
            *(" / ".join(found[i].mean.shown(name, 3) for name in reported) for found in content.stages.values()),
        ]
        for i, one in enumerate(first)
    ]
    pictures = [
        [
            one.name,
            picture,
            *(found[i].images[picture].shown(reported[0], 3) for found in content.stages.values()),
            change,
        ]
        for i, one in enumerate(first)
        for picture, change in _changes(content, i).items()
    ]
    return join(
        [
            table(["set", *names], sets, " / ".join(TITLES[name] for name in reported)),
            _sortable(
                ["set", "picture", *names, "change"],
                [list(map(cell, row)) for row in pictures],
                f"{TITLES[reported[0]]} of each picture",
                "pictures-table",
            ),
        ]
    )


def _changes(content: Content, index: int) -> dict[str, str]:
    """By picture, how much the second network gains over the first."""
    a, b = (content.stages[key][index] for key in content.keys)
    name = a.reported[0]
    return {
        picture: f"{b.images[picture].figures[name] - score.figures[name]:+.3f}" for picture, score in a.images.items()
    }


def network(content: Content) -> Markup:
    """The drawing."""
    return drawing(content.layout, content.sites)


def sites(content: Content) -> Markup:
    """The table of sites, with histograms."""
    shown = content.sites
    measured = any(site.snr_db is not None for site in shown)
    sensitivity = any(site.sensitivity is not None for site in shown)
    compared = any(site.other_bits is not None for site in shown)
    header = ["no.", "site", "kind", "role", "bits w/a"]
    header += [f"bits in {content.first}"] if compared else []
    header += ["SNR (dB)"] if measured else []
    header += ["sensitivity"] if sensitivity else []
    header += ["share of MACs", "activations", "weights"]
    rows = []
    for number, site in enumerate(shown):
        cells = [cell(str(number + 1)), element("th", site.name, scope="row"), cell(site.kind), cell(site.role)]
        cells.append(cell("float" if site.bits is None else "/".join(map(str, site.bits))))
        cells += [cell(site.other_bits or "")] if compared else []
        cells += [cell("-" if site.snr_db is None else f"{site.snr_db:.1f}")] if measured else []
        cells += [cell("-" if site.sensitivity is None else f"{site.sensitivity:.3f}")] if sensitivity else []
        cells.append(cell(f"{100 * site.share:.2f} %"))
        cells += [element("td", chart) for chart in _histograms(site, number)]
        rows.append(cells)
    note = (
        "Choose a heading to sort. Histograms show the values of each operand by the square root of their number; "
        "dashed lines are the first bounds, solid lines the bounds in the checkpoint (the extremes, where an operand "
        "has several ranges). SNR is the signal-to-noise ratio at the first bounds, of the noisier operand. A product "
        "of two activations has its right factor under weights."
        + (" Sensitivity is the RMS error of the output that the site alone leads to, in levels of 255." * sensitivity)
        if measured
        else "Choose a heading to sort. The lines are the bounds in the checkpoint; the values that operands see are "
        "shown on the page that `fxptq quantize` writes."
    )
    find = element(
        "p",
        element("label", "Find sites: ", element("input", type="search", id="find-site", autocomplete="off")),
    )
    return join([element("p", note), find, _sortable(header, rows, "Sites in the order of execution", "sites-table")])


def _histograms(site: SiteRow, number: int) -> tuple[Markup, Markup]:
    if 2 * number >= MOST_HISTOGRAMS:
        return element("span", "left out"), element("span", "left out")
    charts = [histogram(operand) for operand in site.operands]
    return (charts[0] if charts else Markup(""), charts[1] if len(charts) > 1 else Markup(""))


def _sortable(header: Sequence[str], rows: Sequence[Sequence[Markup]], caption: str, name: str) -> Markup:
    head = element("tr", *(element("th", element("button", title, type="button"), scope="col") for title in header))
    anchor = name == "sites-table"
    body = join(element("tr", *row, id=f"site{i}" if anchor else None) for i, row in enumerate(rows))
    content = element("table", element("caption", caption), element("thead", head), element("tbody", body), id=name)
    return scrolling(content, caption, tall=True)


def in_float(content: Content) -> Markup:
    """The sites in float with their reasons."""
    left = [[site.name, site.kind, site.reason] for site in content.sites if site.reason]
    if not left:
        return element("p", "Every site is quantized.")
    return table(["site", "kind", "why it is in float"], left)


def training(content: Content) -> Markup:
    """The passes with their notes, and the curves."""
    if not content.steps:
        return element("p", "No pass was run for this page.")
    rows = [[step.name, f"{step.seconds:.1f}", "; ".join(step.notes)] for step in content.steps]
    charts = [curve(one) for one in content.curves]
    return join([table(["pass", "seconds", "notes"], rows), element("div", *charts, class_="charts")])


_ARTEFACTS = {
    "colour_shift": "largest mean error of a colour",
    "mesh": "mesh: mean errors of the sub-pixel phases, highest minus lowest, in smooth areas",
    "banding": "banding: largest step of a gradient that should have none",
    "beyond": "by how much outputs leave the range of the float network's",
}


def colours(content: Content) -> Markup:
    """Artefacts on calibration inputs; colour shift and ranges of the pictures."""
    measured = {title: content.artefacts[name] for name, title in _ARTEFACTS.items() if name in content.artefacts}
    artefacts = table(
        ["artefact", "levels of 255"],
        [[title, f"{value:.2f}"] for title, value in measured.items()],
        "Artefacts on held-out calibration inputs",
    )
    return join([*([artefacts] if measured else []), _tones(content)])


def _tones(content: Content) -> Markup:
    tones = content.contrast.tones
    if not tones:
        return element("p", "No pictures were kept for this page.")
    channels = "RGB" if len(tones[0].truth) == 3 else "Y"
    header = [
        "set",
        "picture",
        *(f"shift {c}" for c in channels),
        f"{content.first}, lowest to highest",
        f"{content.second}, lowest to highest",
        f"clipped, {content.first}",
        f"clipped, {content.second}",
    ]
    rows = [
        [
            one.benchmark,
            one.picture,
            *(f"{value:+.3f}" for value in one.shift),
            _span(one.first),
            _span(one.second),
            f"{100 * one.first.clipped:.2f} %",
            f"{100 * one.second.clipped:.2f} %",
        ]
        for one in tones
    ]
    note = (
        f"A shift is the mean of {content.second} minus the mean of {content.first}, in levels of 0 to 255. Ranges are "
        "those of the network's output before it is clipped to 0 to 255; the clipped share lies outside."
    )
    worst = max(tones, key=_largest)
    told = f"The largest shift is {_largest(worst):.3f} levels ({worst.benchmark}, {worst.picture})."
    return join([element("p", f"{note} {told}"), table(header, rows, "Colours and ranges")])


def _largest(tones: Tones) -> float:
    return max(map(abs, tones.shift))


def _span(values: Range) -> str:
    return f"{values.lowest:.1f} to {values.highest:.1f}"


def costs(content: Content) -> Markup:
    """Bytes and seconds."""
    sizes = [[name, f"{count:,}"] for name, count in content.sizes.items()]
    sizes += [
        [content.second, f"{content.total:,}"],
        [
            f"{content.first} (float32 parameters)" if content.first == "float" else content.first,
            f"{content.compared_bytes:,}",
        ],
    ]
    tables = [table(["part", "bytes"], sizes, "Bytes on disk")]
    if content.seconds:
        times = [[stage, f"{taken:.1f}"] for stage, taken in content.seconds.items()]
        tables.append(table(["stage", "seconds"], times, "Time"))
    return element("div", *tables, class_="side-by-side")


def origin(content: Content) -> Markup:
    """Command, machine and versions."""
    pairs = [
        join([element("dt", name), element("dd", element("code", value) if name == "Command" else value)])
        for name, value in content.made_by.items()
    ]
    return element("dl", *pairs)
