"""Makes a bundled file of a training run: `python -m fxptq.training.export --recipe swinir_x4 --run DIR --out FILE`.

The program takes the averaged weights of the run's last snapshot, rounds them to half precision, scores the rounded
weights on the benchmark sets, and writes the .safetensors file with its model card (.md) beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import safetensors.torch
import typer
from safetensors import safe_open
from torch import Tensor

from fxptq.data.tasks import TITLES
from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.restore import fitted
from fxptq.evaluate.score import SetScore, evaluate
from fxptq.evaluate.sets import open_set, parse_data
from fxptq.io.state_dict import load_state, read_state
from fxptq.recipe import Recipe
from fxptq.training.loop import AVERAGE

OPTIONS = ("steps", "minutes", "lr", "warmup", "patches", "pixels", "clip", "decay", "seed")
FLAGS = ("compile", "graph")

CARD = """# {title}: bundled weights

{origin}

- File: `{file}`, {bytes:,} bytes, half precision{keys}.
- Data: {data}
- Training: {steps:,} updates in {minutes:.0f} minutes on {machine}, seed {seed}; averaged weights, no selection.
- Command (the schedule follows the clock; `--steps {steps} --minutes 0` follows the updates instead):

      {command}

| set | {figures} |
|---|{rule}
{scores}

Measured on the rounded weights: {protocol}
These sets served for measuring only.
"""

PUBLISHED = """Trained for this project from {start}, for demonstrations and tests that need a trained
network and no download. The authors' weights, trained for days on far more images, are better: see the recipe
`{recipe}`."""

OWN = """Trained for this project in minutes, for demonstrations and tests that need a trained network and no download.
Networks of this kind that were trained for days on far more images are better."""

KEYS = "; keys as in the authors' release, without the buffers that follow from\n  the configuration"


def export(recipe: Recipe, run: Path, out: Path, sets: Sequence[tuple[str, Path]], *, data: str, machine: str) -> str:
    """Writes the weights file and its card.

    Args:
        recipe: the recipe of the network.
        run: folder of the training run.
        out: the .safetensors file to write.
        sets: name and folder of each benchmark.
        data: the training data and its terms, for the card.
        machine: the machine of the training, for the card.

    Returns:
        The text of the card.

    Raises:
        InputError: the folder holds no snapshot, or a snapshot of another network.
    """
    source = run / AVERAGE
    state = {key: t.half() for key, t in read_state(source).items()}
    with safe_open(source, "pt") as file:
        history = file.metadata()
    model = recipe.build_model()
    load_state(model, state)
    scores = []
    for name, folder in sets:
        benchmark = open_set(name, folder, recipe.task, channels=recipe.input.channels)
        if recipe.scale == 1:
            unrestored = evaluate(_unchanged, benchmark, value_range=recipe.input.range)
            scores.append(replace(unrestored, name=f"{name}, the input"))
        scores.append(evaluate(fitted(model, recipe.pictures), benchmark, value_range=recipe.input.range))
    part = out.with_name(f"{out.name}.part")
    safetensors.torch.save_file(state, part, metadata={"recipe": recipe.name, "steps": history["step"]})
    part.chmod(0o644)  # the library makes a file that only its owner can read
    card = _card(recipe, history, scores, file=out.name, size=part.stat().st_size, data=data, machine=machine)
    part.replace(out)
    card_part = out.with_name(f"{out.stem}.md.part")
    card_part.write_text(card, encoding="utf-8")
    card_part.replace(out.with_suffix(".md"))
    return card


def _unchanged(x: Tensor) -> Tensor:
    return x


def _card(
    recipe: Recipe,
    history: dict[str, str],
    scores: Sequence[SetScore],
    *,
    file: str,
    size: int,
    data: str,
    machine: str,
) -> str:
    settings, start = json.loads(history["settings"]), history.get("start", "")
    settings["patches"] = ",".join(map(str, settings["patches"]))
    # An option that is younger than the run was off.
    options = {name: settings.get(name, 0) for name in OPTIONS}
    if settings["device"] != "cpu":
        options["device"] = settings["device"]
    written = [f"--{name} {value}" for name, value in options.items()]
    written += [f"--{flag}" for flag in FLAGS if settings.get(flag)]
    written += [f"--start {start}"] if start else []
    reported = recipe.task.task.figures
    protocol = recipe.task.task.protocol
    rows = [[score.name, *(score.mean.shown(figure) for figure in reported)] for score in scores]
    published = PUBLISHED.format(recipe=recipe.name, start=f"`{start}`" if start else "an interpolating start")
    return CARD.format(
        title=recipe.title,
        origin=published if recipe.weights.url else OWN,
        keys=KEYS if recipe.weights.url else "",
        file=file,
        bytes=size,
        data=data,
        steps=int(history["step"]),
        minutes=float(history["seconds"]) / 60,
        machine=machine,
        seed=settings["seed"],
        command=f"python -m fxptq.training.train --recipe {recipe.name} --data DIR --out DIR " + " ".join(written),
        figures=" | ".join(TITLES[figure] for figure in reported),
        rule="---|" * len(reported),
        scores="\n".join("| " + " | ".join(row) + " |" for row in rows),
        protocol=protocol.format(scale=recipe.scale, **recipe.degradation.model_dump()),
    )


def command(
    *,
    recipe: Annotated[str, typer.Option(help="The recipe, by name or path.")],
    run: Annotated[Path, typer.Option(help="Folder of the training run.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    measure: Annotated[list[str] | None, typer.Option(help="NAME=DIR of a benchmark set; may be repeated.")] = None,
    data: Annotated[str, typer.Option(help="Training data and its terms, for the card.")] = "not stated.",
    machine: Annotated[str, typer.Option(help="Where it was trained, for the card.")] = "a CPU",
) -> None:
    """Writes a run's averaged weights in half precision, with a model card."""
    try:
        if out.suffix != ".safetensors":
            raise InputError(f"{out}: expected a file that ends in .safetensors")
        sets = [parse_data(option) for option in measure or []]
        typer.echo(export(Recipe.load(recipe), run, out, sets, data=data, machine=machine))
    except FxptqError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_status) from error


app = typer.Typer(add_completion=False)
app.command()(command)

if __name__ == "__main__":
    app()
