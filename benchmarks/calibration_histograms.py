"""Differences between the activations of a network under generated pictures and under photographs, site by site.

    python -m benchmarks.calibration_histograms swinir_x4 --photographs ../shared/data/calib --images 32

For every quantized activation, the script computes the Wasserstein distance between its values under either kind of
picture, in units of its standard deviation under photographs; the same distance between two draws of photographs, which
is the size of chance; and the ratios of standard deviations and of largest magnitudes. It prints the worst activations
as a Markdown table, and the medians.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.study import Study, common_options, inputs_of, open_study_network
from fxptq.data.sources import SYNTHETIC
from fxptq.progress import RichProgress
from fxptq.quant.distribution import Distribution

BITS = 4  # sites and their values do not depend on it


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--photographs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--worst", type=int, default=10)
    options = parser.parse_args()
    source = open_study_network(options.network)
    preset = source.recipe.preset("standard")
    statistics = []
    for origin, seed in ((SYNTHETIC, 0), (options.photographs, 0), (options.photographs, 1)):
        inputs = inputs_of(source.recipe, origin, options.images, options.seed + seed)
        statistics.append(Study(source, inputs, preset, options.seed, RichProgress()).at(BITS).statistics)
    synthetic, photographed, again = statistics
    rows = []
    for key, truth in photographed.items():
        unit = spread(truth)
        distances = (wasserstein(other, truth) / unit for other in (synthetic[key], again[key]))
        rows.append((key, *distances, spread(synthetic[key]) / unit, reach(synthetic[key]) / reach(truth)))
    rows.sort(key=lambda row: -row[1])
    print(f"{source.name}, {options.images} inputs of either kind, {len(rows)} activations\n")
    print("| activation | synthetic to photographs | photographs to others | spread | largest |")
    print("|---|---|---|---|---|")
    for name, *figures in rows[: options.worst]:
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    medians = (float(torch.tensor(column).median()) for column in list(zip(*rows, strict=True))[1:])
    print("| median of all | " + " | ".join(f"{figure:.3f}" for figure in medians) + " |")


def wasserstein(first: Distribution, second: Distribution) -> float:
    """Computes the area between two cumulative distributions of one group each, in the unit of the values."""
    points = torch.cat([first.values[0], second.values[0]]).sort().values
    difference = below(first, points) - below(second, points)
    return float((difference[:-1].abs() * points.diff()).sum())


def below(distribution: Distribution, points: torch.Tensor) -> torch.Tensor:
    """Computes the share of elements at or below each point."""
    shares = torch.nn.functional.pad(distribution.counts[0].cumsum(0), (1, 0)) / distribution.total[0]
    return shares[torch.searchsorted(distribution.values[0], points, right=True)]


def spread(distribution: Distribution) -> float:
    """Computes the standard deviation."""
    mean = distribution.sums.sum() / distribution.total[0]
    return float((distribution.power[0] - mean.square()).clamp_min(1e-30).sqrt())


def reach(distribution: Distribution) -> float:
    """Finds the largest magnitude."""
    return float(torch.maximum(distribution.minimum.abs(), distribution.maximum.abs())[0].clamp_min(1e-30))


if __name__ == "__main__":
    main()
