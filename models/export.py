"""From a training run to a bundled file: `python -m fxptq.models.export --recipe swinir_x4 --run DIR --out FILE`.

Takes the averaged weights of the run's last snapshot, rounds them to half precision, measures them as rounded on the
sets given, and writes the .safetensors file with its model card (.md) beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import safetensors.torch
import typer
from safetensors import safe_open

from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.score import SetScore, evaluate
from fxptq.evaluate.sets import open_set, parse_data
from fxptq.models.train_loop import AVERAGE
from fxptq.models.weights_format import load_state, read_state
from fxptq.recipe import Recipe

OPTIONS = ("steps", "minutes", "lr", "warmup", "patches", "pixels", "clip", "decay", "seed")

CARD = """# {title}: bundled weights

Trained for this project from an interpolating start, for demonstrations and tests that need a trained network and no
download. The authors' weights, trained for days on far more images, are better: see the recipe `{recipe}`.

- File: `{file}`, {bytes:,} bytes, half precision; keys as in the authors' release, without the buffers that follow from
  the configuration.
- Data: {data}
- Training: {steps:,} updates in {minutes:.0f} minutes on {machine}, seed {seed}; averaged weights, no selection.
- Command (the schedule follows the clock; `--steps {steps} --minutes 0` follows the updates instead):

      {command}

| set | PSNR (Y), dB | SSIM (Y) |
|---|---|---|
{scores}

Measured on the rounded weights: MATLAB bicubic inputs, output rounded to 8 bits, {scale} pixels cropped at each border.
These sets served for measuring only.
"""


def export(recipe: Recipe, run: Path, out: Path, sets: Sequence[tuple[str, Path]], *, data: str, machine: str) -> str:
    """Writes the weights file and its card.

    Args:
        recipe: of the network.
        run: folder of the run.
        out: the .safetensors file to write.
        sets: name and folder of each benchmark.
        data: what it was trained on and under what terms, for the card.
        machine: what it was trained on, for the card.

    Returns:
        The card.

    Raises:
        InputError: the folder holds no snapshot, or one of another network.
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
        scores.append(evaluate(model, benchmark, value_range=recipe.input.range))
    part = out.with_name(f"{out.name}.part")
    safetensors.torch.save_file(state, part, metadata={"recipe": recipe.name, "steps": history["step"]})
    part.chmod(0o644)  # the library writes for the owner alone
    card = _card(recipe, history, scores, file=out.name, size=part.stat().st_size, data=data, machine=machine)
    part.replace(out)
    card_part = out.with_name(f"{out.stem}.md.part")
    card_part.write_text(card, encoding="utf-8")
    card_part.replace(out.with_suffix(".md"))
    return card


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
    settings = json.loads(history["settings"])
    settings["patches"] = ",".join(map(str, settings["patches"]))
    # An option that the run did not know yet was off.
    options = {name: settings.get(name, 0) for name in OPTIONS}
    return CARD.format(
        title=recipe.title,
        recipe=recipe.name,
        file=file,
        bytes=size,
        data=data,
        steps=int(history["step"]),
        minutes=float(history["seconds"]) / 60,
        machine=machine,
        seed=settings["seed"],
        command=f"python -m fxptq.models.train --recipe {recipe.name} --data DIR --out DIR "
        + " ".join(f"--{name} {value}" for name, value in options.items()),
        scores="\n".join(f"| {score.name} | {score.mean.psnr_y:.2f} | {score.mean.ssim_y:.4f} |" for score in scores),
        scale=recipe.scale,
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
