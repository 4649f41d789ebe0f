"""`fxptq weights`: which weights are on this machine, where published ones belong, and fetching them when asked."""

from __future__ import annotations

from fxptq.io.download import Downloaded
from fxptq.io.weights import WeightsRow, WeightsSource, known_weights
from fxptq.io.weights import fetch as fetch_source
from fxptq.progress import Progress
from fxptq.recipe import Recipe


def weights_source(recipe: Recipe) -> WeightsSource:
    """Where a recipe's weights come from."""
    weights = recipe.weights
    return WeightsSource(recipe.name, weights.bundled, weights.url, weights.sha256, weights.file)


def known() -> list[WeightsRow]:
    """The state of the weights of every bundled recipe that names a network."""
    recipes = [Recipe.load(name) for name in Recipe.names()]
    return known_weights(weights_source(recipe) for recipe in recipes if recipe.model is not None)


def fetch(name: str, progress: Progress) -> Downloaded:
    """Downloads a recipe's published weights into the cache."""
    with progress.task(f"download {name}", 100) as advance:
        shown = 0

        def show(done: int, total: int) -> None:
            nonlocal shown
            reached = 100 * done // total if total else 0
            advance(max(0, reached - shown), note=f"{done / 1e6:.1f} MB")
            shown = max(shown, reached)

        return fetch_source(weights_source(Recipe.load(name)), show)
