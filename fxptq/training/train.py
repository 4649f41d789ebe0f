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
from torch import nn

from fxptq.commands.source import device_of
from fxptq.errors import FxptqError, InputError
from fxptq.io.state_dict import read_state
from fxptq.recipe import Recipe
from fxptq.training.interpolator import fit_phase_kernels, start_as_interpolator
from fxptq.training.loop import Trainer, TrainSettings
from fxptq.training.patches import read_pairs

DEFAULTS = TrainSettings()


def train(
    recipe: Recipe, data: Path, out: Path, settings: TrainSettings, *, held_out: int, start: Path | None = None
) -> None:
    """Trains the recipe's network on a folder of photographs.

    Args:
        recipe: the recipe of the network, with its degradation.
        data: folder of images.
        out: folder of the run (see `Trainer`).
        settings: settings of the training.
        held_out: number of images that are not trained on, evenly spread over the folder.
        start: weights of a similar network, such as one of another scale, to start from; None for the usual start.

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
    if start is not None:
        _start_from(model, start)
    held_out_pairs = [pairs[index] for index in sorted(watched)]
    trainer = Trainer(
        model,
        trained_on,
        held_out_pairs,
        degradation=task,
        value_range=recipe.input.range,
        settings=settings,
        out=out,
        start=start.name if start else "",
    )
    typer.echo(f"{len(trained_on)} pairs; training begins")
    trainer.run(typer.echo)


@torch.no_grad()
def _start_from(model: nn.Module, weights: Path) -> None:
    """Copies each tensor whose name and shape the network shares with a file; the others stay.

    Raises:
        InputError: no tensor has a name and shape of the network's.
    """
    given = read_state(weights)
    shared = {
        name: tensor for name, tensor in model.named_parameters() if name in given and given[name].shape == tensor.shape
    }
    if not shared:
        raise InputError(f"--start {weights}: no tensor has the name and shape of one of the network's")
    for name, tensor in shared.items():
        tensor.copy_(given[name])


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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = DEFAULTS.device,
    threads: Annotated[int, typer.Option(help="Of the processor; 0: as torch chooses.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16 where it is safe.")] = DEFAULTS.bf16,
    compile_network: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = DEFAULTS.compile,
    graph: Annotated[bool, typer.Option("--graph", help="Replay updates as a CUDA graph.")] = DEFAULTS.graph,
    start: Annotated[Path | None, typer.Option(help="Weights of a similar network to start from.")] = None,
    snapshot_minutes: Annotated[float, typer.Option(help="Time between snapshots.")] = DEFAULTS.snapshot_minutes,
    held_out: Annotated[int, typer.Option(min=0, help="Images held out.")] = 8,
) -> None:
    """Trains a bundled network from scratch; the same command, run again, continues where it stopped."""
    if threads:
        torch.set_num_threads(threads)
    try:
        placed = device_of(device).type
        if placed == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        elif graph:
            raise InputError(f"--graph: CUDA graphs need --device cuda; the device is {placed}")
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
            device=placed,
            bf16=bf16,
            compile=compile_network,
            graph=graph,
            snapshot_minutes=snapshot_minutes,
        )
        train(Recipe.load(recipe), data, out, settings, held_out=held_out, start=start)
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
