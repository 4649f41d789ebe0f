"""Trains a bundled network from scratch: `python -m fxptq.training.train --recipe swinir_x4 --data DIR --out DIR`.

DIR holds photographs; the recipe's degradation makes the network's inputs from them. A few photographs are held out to
measure the progress. A network for super-resolution starts as a good interpolator, so that an hour on a small machine
gives a useful network. The same command, run again, continues where the last run stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from fxptq.commands.community import recognised
from fxptq.errors import FxptqError, InputError
from fxptq.io.state_dict import read_state
from fxptq.recipe import Recipe
from fxptq.training.interpolator import fit_phase_kernels, start_as_interpolator
from fxptq.training.loop import Trainer, TrainSettings
from fxptq.training.material import plain, with_answers
from fxptq.training.patches import make_pair, read_photographs

DEFAULTS = TrainSettings()


@dataclass(frozen=True)
class Sources:
    """What a network learns from beside photographs.

    Attributes:
        teacher: weights of a larger network for the same task, which spandrel recognises; None for none.
        start: weights of a similar network, such as one of another scale, to start from; None for the usual start.
    """

    teacher: Path | None = None
    start: Path | None = None


def train(
    recipe: Recipe, data: Path, out: Path, settings: TrainSettings, *, held_out: int, sources: Sources = Sources()
) -> None:
    """Trains the recipe's network on a folder of photographs.

    Args:
        recipe: the recipe of the network, with its degradation.
        data: folder of images.
        out: folder of the run (see `Trainer`).
        settings: settings of the training.
        held_out: number of images that are not trained on, evenly spread over the folder.
        sources: what the network learns from beside the photographs.

    Raises:
        InputError: the recipe names no degradation, or the folder holds too few images.
    """
    task = recipe.task
    if task.kind == "none":
        raise InputError(f"recipe {recipe.name} has no [degradation]; training makes the network's inputs by it")
    if sources.teacher is not None and task.kind != "bicubic":
        raise InputError(f"recipe {recipe.name} restores {task}; a teacher answers for super-resolution alone")
    photographs = read_photographs(data, recipe.input.channels)
    if len(photographs) <= held_out:
        raise InputError(f"{data} holds {len(photographs)} images; with --held-out {held_out} none is left to train on")
    watched = set(range(0, len(photographs), len(photographs) // held_out)[:held_out]) if held_out else set()
    trained_on = [photograph for index, photograph in enumerate(photographs) if index not in watched]
    if sources.teacher is None:
        groups = plain(trained_on, task)
    else:
        teacher = _teacher(sources.teacher, recipe)
        groups = with_answers(trained_on, task, teacher, torch.device(settings.device))
    torch.manual_seed(settings.seed)
    model = recipe.build_model()
    if task.kind == "bicubic":
        start_as_interpolator(model, fit_phase_kernels(groups[0].pairs, recipe.scale))
    if sources.start is not None:
        _start_from(model, sources.start)
    trainer = Trainer(
        model,
        groups,
        [make_pair(photographs[index], task) for index in sorted(watched)],
        degradation=task,
        value_range=recipe.input.range,
        settings=settings,
        out=out,
    )
    typer.echo(f"{sum(len(group.pairs) for group in groups)} pairs; training begins")
    trainer.run(typer.echo)


def _teacher(weights: Path, recipe: Recipe) -> nn.Module:
    """The teacher, a network that spandrel recognises.

    Raises:
        InputError: the file is not such a network's, or the network has another scale or number of channels.
    """
    found = recognised(weights)
    expected, given = ((r.scale, r.input.channels) for r in (recipe, found.recipe))
    if given != expected:
        raise InputError(
            f"--teacher {weights}: the network has scale {given[0]} and {given[1]} channels; expected {expected[0]} and "
            f"{expected[1]}, as in recipe {recipe.name}"
        )
    return found.model


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
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = DEFAULTS.device,
    threads: Annotated[int, typer.Option(help="Of the processor; 0: as torch chooses.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16 where it is safe.")] = DEFAULTS.bf16,
    compile_network: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = DEFAULTS.compile,
    graph: Annotated[bool, typer.Option("--graph", help="Replay updates as a CUDA graph.")] = DEFAULTS.graph,
    teacher: Annotated[Path | None, typer.Option(help="Weights of a teacher that spandrel recognises.")] = None,
    start: Annotated[Path | None, typer.Option(help="Weights of a similar network to start from.")] = None,
    snapshot_minutes: Annotated[float, typer.Option(help="Time between snapshots.")] = DEFAULTS.snapshot_minutes,
    held_out: Annotated[int, typer.Option(min=0, help="Images held out.")] = 8,
) -> None:
    """Trains a bundled network from scratch; the same command, run again, continues where it stopped."""
    if threads:
        torch.set_num_threads(threads)
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
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
            graph=graph,
            snapshot_minutes=snapshot_minutes,
        )
        if graph and torch.device(device).type != "cuda":
            raise InputError(f"--graph: CUDA graphs need --device cuda; the device is {device}")
        train(Recipe.load(recipe), data, out, settings, held_out=held_out, sources=Sources(teacher, start))
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
