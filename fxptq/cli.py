"""The command line: options in, tables out. No logic: every command calls one function of fxptq.commands.

What a command writes is checked before its work, and its JSON is written before its tables are shown.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional, cast

import typer
from rich.console import Console

from fxptq import __version__, shell
from fxptq.errors import FxptqError
from fxptq.io.files import check_writable, write_json
from fxptq.io.outputs import CHECKPOINT, GRAPHML, JSON, PAGE, Output, check_outputs
from fxptq.progress import Progress, RichProgress, Silent

app = typer.Typer(name="fxptq", add_completion=False, pretty_exceptions_enable=False)

# Names of files and sites may look like markup; where there is no terminal no line is too long.
_stdout = shell.Output()
out = Console(
    file=cast("Any", _stdout),
    soft_wrap=True,
    markup=False,
    highlight=False,
    width=None if _stdout.isatty() else 1000,
)

# Bad usage as click reports it; newer typers carry a click of their own, older ones use the package.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])

INTERRUPTED = 130  # exit status


def _writable(path: Optional[Path]) -> Optional[Path]:
    if path is not None:
        check_writable(path)
    return path


Eval = Annotated[
    Optional[list[str]],
    typer.Option("--eval", metavar="NAME=DIR", help="Score on a benchmark: DIR holds HR/ and LR_bicubic/X{2,3,4}/."),
]
JsonOut = Annotated[
    Optional[Path],
    typer.Option("--json", metavar="FILE", help="Also write the result as JSON.", callback=_writable),
]
Model = Annotated[
    Optional[str],
    typer.Option(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="A network of your own, built without arguments; or the recipe's .toml file that builds it; or a weights "
        "file that spandrel recognises.",
    ),
]
Sites = Annotated[
    Optional[list[str]],
    typer.Option("--site", metavar="GLOB=W3A4|float", help="Bits of sites by their names; may be repeated."),
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint that `fxptq quantize` wrote.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        write_json(path, content)


def _outputs(json_out: Path | None, *others: Output) -> list[Output]:
    return [*others, *([Output("--json", json_out, JSON)] if json_out is not None else [])]


def _progress() -> Progress:
    """Bars on a terminal; elsewhere standard error is for errors alone."""
    return RichProgress() if sys.stderr.isatty() else Silent()


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"fxptq {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def overview(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001  # its callback answers
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Quantizes image-restoration networks to a few bits and runs them as integers."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(2)


@app.command()
def quantize(
    recipe: Annotated[Optional[str], typer.Option(help="A recipe's name, or the path of a .toml file.")] = None,
    w: Annotated[int, typer.Option("--w", help="Bits of weights, 2 to 8.")] = 4,
    a: Annotated[int, typer.Option("--a", help="Bits of activations, 2 to 8.")] = 4,
    model: Model = None,
    weights: Annotated[Optional[Path], typer.Option(help="A weights file instead of the recipe's.")] = None,
    calib: Annotated[str, typer.Option(help="A folder of pictures, or synthetic: no pictures needed.")] = "synthetic",
    data: Eval = None,
    preset: Annotated[
        str,
        typer.Option(
            help="quick (bounds alone), standard, paper (the published method), or accurate (best for few bits; "
            "its attentions and many layers are simulated so far)."
        ),
    ] = "standard",
    file: Annotated[
        Optional[Path], typer.Option("--out", help="Where to write the checkpoint, as .safetensors.")
    ] = None,
    budget: Annotated[
        Optional[str],
        typer.Option(
            help="Bits where they matter, within average bits (3.0), bytes of the checkpoint (600k) or bit operations "
            "(12Gbop)."
        ),
    ] = None,
    target_bits: Annotated[
        Optional[float], typer.Option("--target-bits", help="The same as --budget with average bits, 2 to 8.")
    ] = None,
    target_bytes: Annotated[
        Optional[str], typer.Option("--target-bytes", help="The same as --budget with bytes, such as 600000 or 600k.")
    ] = None,
    max_drop: Annotated[
        Optional[float],
        typer.Option("--max-drop", help="The fewest bits that lose so many dB at most on held-out pictures."),
    ] = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="The planned bits everywhere, also where the preset allocates them.")
    ] = False,
    site: Sites = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    scale: Annotated[Optional[int], typer.Option(help="Of the output over the input, if it is not found.")] = None,
    white: Annotated[
        Optional[float], typer.Option("--range", help="The value of white in the input: 1 or 255.")
    ] = None,
    multiple: Annotated[Optional[int], typer.Option(help="Height and width are padded to multiples of this.")] = None,
    degradation: Annotated[
        Optional[str], typer.Option(help="What the network repairs: bicubic, noise:SIGMA, jpeg:QUALITY or none.")
    ] = None,
    size: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH of an input that the network takes, if no usual square is.")
    ] = None,
    json_out: JsonOut = None,
) -> None:
    """Quantize a network and write it as one small file."""
    from fxptq.bits import Bits
    from fxptq.commands import quantize as command
    from fxptq.commands.budgets import asked_budget
    from fxptq.facts import Overrides
    from fxptq.report import console, page
    from fxptq.sizes import parse_size

    bits = Bits(w, a)
    asked = asked_budget(budget, target_bits, target_bytes, max_drop)
    name = Path(recipe or (weights and weights.stem) or (model or "network").split(":")[-1]).stem
    target = file or Path(f"{name}_{asked.label if asked else f'w{w}a{a}'}.safetensors")
    command.check_name(target)
    report = target.with_suffix(".html")
    check_outputs(
        _outputs(json_out, Output("--out", target, CHECKPOINT), Output("the report", report, PAGE)),
        {"--weights": weights, "--recipe": recipe, "--model": model},
    )
    options = command.Options(
        bits,
        recipe,
        model,
        weights,
        calib,
        tuple(data or ()),
        preset,
        target,
        device,
        seed,
        tuple(site or ()),
        Overrides(scale, white, multiple, degradation, None if size is None else parse_size(size)),
        asked,
        uniform,
    )
    outcome = command.run(options, _progress())
    page.write(outcome, report)
    _write_json(json_out, outcome.as_json())
    console.show_quantized(out, outcome, report)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        Optional[list[str]], typer.Option("--data", metavar="NAME=DIR", help="A benchmark; may be repeated.")
    ] = None,
    integer: Annotated[
        bool, typer.Option("--integer", help="Run on integer kernels instead of the simulation.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Score a checkpoint on benchmarks."""
    from fxptq.commands import evaluate as command
    from fxptq.report import console

    check_outputs(_outputs(json_out), {"CKPT": checkpoint, "--model": model})
    scores = command.run(checkpoint, tuple(data or ()), model, _progress(), integer=integer, device=device)
    _write_json(json_out, command.as_json(scores))
    console.show_scores(out, scores)


@app.command()
def upscale(
    checkpoint: Checkpoint,
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture, or a folder of pictures.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A .png file, or a folder.")],
    tile: Annotated[int, typer.Option(help="Run in tiles of so many input pixels; 0 for the whole picture.")] = 0,
    integer: Annotated[
        bool, typer.Option("--integer", help="Run on integer kernels instead of the simulation.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Restore pictures with a checkpoint."""
    from fxptq.commands import upscale as command

    done = command.run(checkpoint, source, target, model, _progress(), tile=tile, integer=integer, device=device)
    for path in done.written:
        out.print(str(path))
    for pace in done.paces:
        if pace.gains:  # where integers lose, a warning has said so already
            _say(str(pace))


@app.command()
def inspect(
    subject: Annotated[
        Optional[str], typer.Argument(metavar="[RECIPE|CKPT]", help="A recipe or a checkpoint; may be left out.")
    ] = None,
    w: Annotated[int, typer.Option("--w", help="Bits of weights to plan with.")] = 4,
    a: Annotated[int, typer.Option("--a", help="Bits of activations to plan with.")] = 4,
    model: Model = None,
    site: Sites = None,
    graphml: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Also write the graph as GraphML.")] = None,
    json_out: JsonOut = None,
) -> None:
    """Show the sites of a network: name, kind, shapes, cost, role and bits."""
    from fxptq.bits import Bits
    from fxptq.commands import inspect as command
    from fxptq.report import console

    drawn = [Output("--graphml", graphml, GRAPHML)] if graphml is not None else []
    check_outputs(_outputs(json_out, *drawn), {"RECIPE|CKPT": subject, "--model": model})
    sites = command.run(subject, Bits(w, a), model, graphml, tuple(site or ()))
    _write_json(json_out, command.as_json(sites))
    console.show_sites(out, sites)


@app.command()
def bench(
    checkpoint: Checkpoint,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the input.")] = "64x64",
    threads: Annotated[int, typer.Option(min=0, help="Threads that each way may use; 0 for all cores.")] = 0,
    way: Annotated[
        Optional[list[str]],
        typer.Option("--ways", "--only", metavar="WAY,...", help="Ways to measure, such as eager-fp32,fxptq-int."),
    ] = None,
    model: Model = None,
    json_out: JsonOut = None,
) -> None:
    """Measure a checkpoint on this machine, beside the float network and the peers that are installed."""
    from fxptq.bench import measure
    from fxptq.report import console

    check_outputs(_outputs(json_out), {"CKPT": checkpoint, "--model": model})
    chosen = [name for group in way or () for name in group.split(",") if name]
    measured = measure.run(checkpoint, size, model, _progress(), only=chosen, threads=threads)
    _write_json(json_out, measured.as_json())
    console.show_bench(out, measured)


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    from fxptq.recipe import Recipe
    from fxptq.report import console

    console.show_recipes(out, [Recipe.load(name) for name in Recipe.names()])


@app.command()
def weights(
    download: Annotated[
        Optional[str], typer.Option(metavar="RECIPE", help="Fetch a recipe's published weights.")
    ] = None,
) -> None:
    """List the weights known, bundled and cached, and where a published file belongs."""
    from fxptq.commands import weights as command
    from fxptq.report import console

    if download is not None:
        out.print(str(command.fetch(download, _progress())))
    console.show_weights(out, command.known())


def main() -> NoReturn:
    """Runs a command; bad input is one line on standard error and exit status 2, a failure 1."""
    shell.prepare_streams()
    with shell.Interrupts() as interrupts:
        status, message = _run(shell.expanded(sys.argv[1:]))
    if status == INTERRUPTED or (status and interrupts.struck):
        _say("interrupted")
        # Not sys.exit: Python kills itself by the signal where the interrupt struck inside an exec'd string.
        os._exit(INTERRUPTED)
    lost = _stdout.close_quietly()
    _stdout.error = None
    if message:
        _say(message)
    elif lost:
        _say(f"standard output cannot be written: {lost}")
        status = status or 1
    sys.exit(status)


def _run(arguments: list[str]) -> tuple[int, str]:
    """The exit status of a command, and what to say of its failure."""
    try:
        return app(arguments, prog_name="fxptq", standalone_mode=False) or 0, ""
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED, ""
    except Exception as error:  # noqa: BLE001  # the last place where it can become a line for people
        return _reported(error)


def _reported(error: Exception) -> tuple[int, str]:
    """The exit status that an error leads to, and its line."""
    match error:
        case FxptqError():
            found = error.exit_status, str(error)
        case UsageError():
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "fxptq"
            found = 2, f"{cast('Any', error).format_message().rstrip('.')}; see {command} --help"
        case BrokenPipeError():  # whoever read the help wanted no more of it
            found = 0, ""
        case OSError():
            where = f"{error.filename}: " if error.filename is not None else ""
            found = 1, f"{where}{error.strerror or error}"
        case MemoryError():
            found = 1, f"out of memory{f': {error}' if str(error) else ''}"
        case _:  # a fault of ours: people get a line, and we its place
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if os.environ.get("FXPTQ_TRACEBACK"):
                traceback.print_exception(error)
            said = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"
            found = 1, f"a fault of fxptq: {said} (FXPTQ_TRACEBACK=1 shows more)"
    return found


def _say(message: str) -> None:
    """One line on standard error, whatever lines the message has; nothing where that cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        print(f"fxptq: {shell.one_line(message)}", file=sys.stderr, flush=True)
