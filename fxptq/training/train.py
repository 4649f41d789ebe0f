"""Trains a bundled network from scratch: `python -m fxptq.training.train --recipe swinir_x4 --data DIR --out DIR`.

DIR holds photographs; the recipe's degradation makes the network's inputs from them. A few photographs are held out to
measure the progress. A network for super-resolution starts as a good interpolator, so that an hour on a small machine
gives a useful network. The same command, run again, continues where the last run stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from fxptq.errors import FxptqError, InputError
from fxptq.recipe import Recipe
from fxptq.training.interpolator import fit_phase_kernels, start_as_interpolator
from fxptq.training.loop import Trainer, TrainSettings
from fxptq.training.patches import read_pairs

DEFAULTS = TrainSettings()


def train(recipe: Recipe, data: Path, out: Path, settings: TrainSettings, *, held_out: int) -> None:
    """Trains the recipe's network on a folder of photographs.

    Args:
        recipe: the recipe of the network, with its degradation.
        data: folder of images.
        out: folder of the run (see `Trainer`).
        settings: settings of the training.
        held_out: number of images that are not trained on, evenly spread over the folder.

    Raises:
        InputError: the recipe names no degradation, or the folder holds too few images.
    """
    task = recipe.task
    if task.kind == "none":
        raise InputError(f"recipe {recipe.name} has no [degradation]; training makes the network's inputs by it")
    pairs = read_pairs(data, task, recipe.input.channels)
    if len(pairs) <= held_out:
        raise InputError(f"{data} holds {len(pairs)} images; with --held-out {held_out} none is left to train on")
    watched = set(range(0, len(pairs), len(pairs) // held_out)[:held_out]) if held_out else set()
    trained_on = [pair for index, pair in enumerate(pairs) if index not in watched]
    torch.manual_seed(settings.seed)
    model = recipe.build_model()
    if task.kind == "bicubic":
        start_as_interpolator(model, fit_phase_kernels(trained_on, recipe.scale))
    held_out_pairs = [pairs[index] for index in sorted(watched)]
    trainer = Trainer(
        model, trained_on, held_out_pairs, degradation=task, value_range=recipe.input.range, settings=settings, out=out
    )
    trainer.run()


def command(
    *,
    recipe: Annotated[str, typer.Option(help="A recipe, by name or path.")],
    data: Annotated[Path, typer.Option(help="Folder of photographs.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Updates in all.")] = DEFAULTS.steps,
    minutes: Annotated[float, typer.Option(help="End after so much time, if sooner; 0: no limit.")] = DEFAULTS.minutes,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    warmup: Annotated[int, typer.Option(help="Updates up to the peak.")] = DEFAULTS.warmup,
    patches: Annotated[str, typer.Option(help="Sides of the network's input, in turn.")] = "24,32,48",
    pixels: Annotated[int, typer.Option(help="Input pixels of a batch.")] = DEFAULTS.pixels,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient; 0: no limit.")] = DEFAULTS.clip,
    decay: Annotated[float, typer.Option(help="Of the average of the weights.")] = DEFAULTS.decay,
    seed: Annotated[int, typer.Option(help="Of first weights and patches.")] = DEFAULTS.seed,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = DEFAULTS.device,
    threads: Annotated[int, typer.Option(help="Of the processor; 0: as torch chooses.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16 where it is safe.")] = DEFAULTS.bf16,
    compile_network: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = DEFAULTS.compile,
    snapshot_minutes: Annotated[float, typer.Option(help="Time between snapshots.")] = DEFAULTS.snapshot_minutes,
    held_out: Annotated[int, typer.Option(min=0, help="Images held out.")] = 8,
) -> None:
    """Trains a bundled network from scratch; the same command, run again, continues where it stopped."""
    if threads:
        torch.set_num_threads(threads)
    try:
        settings = TrainSettings(
            steps=steps,
            minutes=minutes,
            lr=lr,
            warmup=warmup,
            patches=_sides(patches),
            pixels=pixels,
            clip=clip,
            decay=decay,
            seed=seed,
            device=device,
            bf16=bf16,
            compile=compile_network,
            snapshot_minutes=snapshot_minutes,
        )
        train(Recipe.load(recipe), data, out, settings, held_out=held_out)
    except FxptqError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_status) from error


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise InputError(f"--patches {text!r}: expected whole numbers and commas, such as 24,32,48") from error


app = typer.Typer(add_completion=False)
app.command()(command)

if __name__ == "__main__":
    app()
