"""The records of the test bed as docs/architectures.md."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fxptq.graph.kinds import kind_named

HEAD = """\
# Architectures

This page shows how fxptq handles image-restoration networks that it was not written for: the networks of
[spandrel](https://github.com/chaiNNer-org/spandrel) 0.4.2 and spandrel_extra_arches 0.2.0. Nothing in fxptq knows
their names. These commands print the page:

    make zoo                                              # an environment of its own, then all networks
    .venv-zoo/bin/python -m benchmarks.zoo --markdown     # this page, from the records in out/zoo

Each network is a small configuration made from spandrel's classes: it has few blocks and channels and random weights,
and weights that start as zeros or ones are nudged. The network is captured at one size and compared with eager at
three sizes, the last of which is no multiple of any window (it is padded from outside where the architecture demands
multiples). Then the network is quantized at W4A4 by DOBI, a gradient is taken with respect to the bounds, and the
checkpoint is saved, loaded and compared again, bit for bit, at each size. Each network runs in a process of its own
with one thread and 12 GB. Of both packages' architectures only MAT (inpainting at 512 x 512) is not tried.

The records come from torch 2.13.0, which `make zoo` installs. With torch 2.15.0, the newest, the project's tests
pass, and the same networks go all the way, with the same graphs, sites, guards and quantizers. The errors are the
same too, except for CodeFormer and DDColor (0 there):

    make zoo ZOO=.venv-zoo-new ZOO_RESULTS=out/zoo-new TORCH=torch==2.15.0

- **graph**: number of calls in the captured graph. **sites**: numbers of convolutions / linear layers / attention
  products / others.
- **MACs**: share of all multiply-accumulates (counted by PyTorch's flop counter, independently of the graph) that is
  quantized. Tensors that a network recomputes in each forward without need of the image (the kernels of SPAN, the
  position biases of Swin2SR) are computed once in the graph, and count as not quantized here.
- **graphs**: number of graphs for the three sizes, and number of comparisons of sizes that guard the first graph.
- **eager**: largest difference from the network itself over the sizes, relative to the largest value; 0 is bit for
  bit. Networks that call fused attention are captured by its parts, which round differently.
- **gradient**: the same difference for the gradient at the input; "-" where eager itself has no gradient.
- **bounds**: number of quantizers that a gradient reaches, of all.
- **capture**: seconds, with the checks at another image and another size, on a machine busy with other work.
"""

COLUMNS = "network | graph | sites | MACs | graphs | eager | gradient | bounds | capture | verdict"


def markdown(records: list[dict[str, Any]]) -> str:
    """The page, with a final newline."""
    passed = [record for record in records if "error" not in record]
    lines = [HEAD, f"{len(passed)} of {len(records)} go all the way.", ""]
    lines += [f"| {COLUMNS} |", "|" + "---|" * (COLUMNS.count("|") + 1)]
    lines += [_row(record) for record in records]
    failed = [record for record in records if "error" in record]
    if failed:
        lines += ["", "## Networks that do not go all the way", ""]
        lines += [f"- **{r['name']}**, at the step `{r.get('step', 'start')}`: {r['error']}" for r in failed]
    lines += ["", "## Sites left in float, with the reason", ""]
    reasons: dict[str, Counter[str]] = {}
    for record in records:
        for reason, count in record.get("float", {}).items():
            reasons.setdefault(reason, Counter())[record["name"]] += count
    for reason, where in sorted(reasons.items()):
        lines.append(f"- {reason}: " + ", ".join(f"{name} ({count})" for name, count in where.items()))
    unreached = [record for record in records if record.get("unreached")]
    if unreached:
        lines += ["", "## Bounds that no gradient reaches", "", "These bounds stay as DOBI has set them.", ""]
        lines += [f"- {r['name']}: " + ", ".join(f"`{key}`" for key in _some(r["unreached"])) for r in unreached]
    noted = [record for record in records if record.get("note")]
    lines += ["", "## About the configurations", ""]
    lines += [f"- {record['name']}: {record['note']}." for record in noted]
    return "\n".join(lines) + "\n"


def _some(keys: list[str], most: int = 6) -> list[str]:
    return keys if len(keys) <= most else [*keys[:most], f"... {len(keys) - most} more"]


def _row(record: dict[str, Any]) -> str:
    verdict = "ok" if "error" not in record else f"{record.get('step', 'start')} failed"
    if "nodes" not in record:
        return f"| {record['name']} | | | | | | | | | {verdict} |"
    sites = record["sites"]
    convolutions = sum(count for kind, count in sites.items() if kind_named(kind).is_convolution)
    counts = f"{convolutions} / {sites.get('linear', 0)} / {sites.get('matmul', 0)} / {sites.get('other', 0)}"
    share = 100 * record["macs_quantized"] / max(record["macs"], record["macs_sites"])
    seconds = record["seconds"]
    gradient = _relative(record["gradient_difference"]) if "gradient_difference" in record else "-"
    bounds = f"{record['reached']} / {record['quantizers']}" if "reached" in record else ""
    return (
        f"| {record['name']} | {record['nodes']} | {counts} | {share:.1f} % | {record['graphs']}, "
        f"{record['guards']} guards | {_relative(max(record['difference']))} | {gradient} | {bounds} | "
        f"{seconds['compare'] - seconds['capture']:.1f} | {verdict} |"
    )


def _relative(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"
