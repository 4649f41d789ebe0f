"""The command line: options in, tables out. No logic: every command calls one function of fxptq.commands.

What a command writes is checked before its work, and its JSON is written before its tables are shown.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional, cast

import typer

from fxptq import __version__, shell
from fxptq.errors import FxptqError
from fxptq.io.files import check_writable, write_json
from fxptq.io.outputs import CHECKPOINT, GRAPHML, JSON, ONNX, PAGE, TORCH_EXPORT, Output, check_outputs
from fxptq.report.tables import FORMS, Form, TableConsole, parse_form

if TYPE_CHECKING:
    from fxptq.progress import Overall

app = typer.Typer(
    name="fxptq", pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)

# Names of files and sites may look like markup; where there is no terminal no line is too long.
_stdout = shell.Output()


def _console(form: Form | None = None) -> TableConsole:
    """Standard output; tables are drawn on a terminal and plain elsewhere, unless a form is given."""
    terminal = _stdout.isatty()
    return TableConsole(
        form or ("table" if terminal else "plain"),
        file=cast("Any", _stdout),
        soft_wrap=True,
        markup=False,
        highlight=False,
        width=None if terminal else 1000,
    )


out = _console()

# Bad usage as click reports it; newer typers carry a click of their own, older ones use the package.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])

INTERRUPTED = 130  # exit status


def _writable(path: Optional[Path]) -> Optional[Path]:
    if path is not None:
        check_writable(path)
    return path


def _known_form(text: Optional[str]) -> Optional[str]:
    return None if text is None else parse_form(text)


def _recipe_names(incomplete: str) -> list[str]:
    from fxptq.recipe import Recipe

    return [name for name in Recipe.names() if name.startswith(incomplete)]


def _one_of(*values: str) -> Callable[[str], list[str]]:
    """Completes an option of a few values in the shell."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


NETWORK, SCORES, OWN, RESULT = "The network", "Scores", "Facts about a network of your own", "Results"
"""Groups of options in a help."""
FILES, MEANS = "Files", "Speed and memory"
MAKE, USE, LOOK = "Make a checkpoint", "Use a checkpoint", "Look around"
"""Groups of commands."""

Data = Annotated[
    Optional[list[str]],
    typer.Option(
        "--data",
        "--eval",
        metavar="NAME=DIR",
        help="A benchmark to score on, may be repeated: DIR holds HR/ and LR_bicubic/X{2,3,4}/, or input/ and target/. "
        "Without it, generated samples are scored.",
        rich_help_panel=SCORES,
    ),
]
JsonOut = Annotated[
    Optional[Path],
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write the result as JSON.",
        callback=_writable,
        rich_help_panel=RESULT,
    ),
]
Format = Annotated[
    Optional[str],
    typer.Option(
        "--format",
        metavar="table|plain|md",
        help="Form of tables: drawn, aligned or Markdown. Drawn on a terminal and aligned elsewhere unless given.",
        callback=_known_form,
        autocompletion=_one_of(*FORMS),
        rich_help_panel=RESULT,
    ),
]
Model = Annotated[
    Optional[str],
    typer.Option(
        "--model",
        rich_help_panel=NETWORK,
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
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", autocompletion=_one_of("auto", "cpu", "cuda"))]


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        write_json(path, content)


def _command_line() -> str:
    return shlex.join(["fxptq", *sys.argv[1:]])


def _outputs(json_out: Path | None, *others: Output) -> list[Output]:
    return [*others, *([Output("--json", json_out, JSON)] if json_out is not None else [])]


def _tables(form: Optional[str]) -> TableConsole:
    """Standard output with tables in the form that `--format` names."""
    return _console(None if form is None else parse_form(form))


def _progress() -> Overall:
    """Bars on a terminal; elsewhere a line a minute."""
    from fxptq.progress import Lines, RichProgress

    return RichProgress() if sys.stderr.isatty() else Lines(_say)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"fxptq {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="Example: fxptq quantize --recipe swinir_x4, then: fxptq upscale swinir_x4_w4a4.safetensors IN.png OUT.png",
)
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


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: fxptq quantize --recipe swinir_x4 --w 3 --a 3 --data Set5=data/Set5 -o small.safetensors",
)
def quantize(
    recipe: Annotated[
        Optional[str],
        typer.Option(
            help="A recipe's name, or the path of a .toml file.",
            autocompletion=_recipe_names,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    w: Annotated[int, typer.Option("--w", help="Bits of weights, 2 to 8.")] = 4,
    a: Annotated[int, typer.Option("--a", help="Bits of activations, 2 to 8.")] = 4,
    model: Model = None,
    weights: Annotated[
        Optional[Path], typer.Option(help="A weights file instead of the recipe's.", rich_help_panel=NETWORK)
    ] = None,
    calib: Annotated[
        str,
        typer.Option(help="A folder of pictures, or of pairs (input/ and target/), or synthetic: no pictures needed."),
    ] = "synthetic",
    data: Data = None,
    preset: Annotated[
        str,
        typer.Option(
            help="quick (no training), standard, best (up to half an hour), or paper (the published method).",
            autocompletion=_one_of("quick", "standard", "best", "paper"),
        ),
    ] = "standard",
    file: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="Where to write the checkpoint, as .safetensors.", rich_help_panel=RESULT),
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
        bool, typer.Option("--uniform", help="The planned bits, more only where they cost next to nothing.")
    ] = False,
    zero_on_grid: Annotated[
        bool, typer.Option("--zero-on-grid", help="Give 0 a code on every grid, for integers in other runtimes.")
    ] = False,
    site: Sites = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FOLDER",
            help="Keep the state of the run there; the same command goes on where a run that was killed has ended.",
        ),
    ] = None,
    memory: Annotated[
        Optional[str],
        typer.Option(
            metavar="SIZE",
            help="What statistics may take at a time beside the networks, such as 500M or 4G; the result is the same.",
        ),
    ] = None,
    scale: Annotated[
        Optional[int], typer.Option(help="Of the output over the input, if it is not found.", rich_help_panel=OWN)
    ] = None,
    white: Annotated[
        Optional[float],
        typer.Option("--range", help="The value of white in the input: 1 or 255.", rich_help_panel=OWN),
    ] = None,
    multiple: Annotated[
        Optional[int], typer.Option(help="Height and width are padded to multiples of this.", rich_help_panel=OWN)
    ] = None,
    degradation: Annotated[
        Optional[str],
        typer.Option(
            help="What the network repairs: bicubic, noise:SIGMA, jpeg:QUALITY, pairs or none.", rich_help_panel=OWN
        ),
    ] = None,
    size: Annotated[
        Optional[str],
        typer.Option(
            help="HEIGHTxWIDTH of an input that the network takes, if no usual square is.", rich_help_panel=OWN
        ),
    ] = None,
    json_out: JsonOut = None,
    form: Format = None,
    page: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            help="Write a page with pictures and figures beside the checkpoint.",
            rich_help_panel=RESULT,
        ),
    ] = True,
) -> None:
    """Quantize a network and write it as one small file."""
    from fxptq.bits import Bits
    from fxptq.commands import quantize as command
    from fxptq.commands.budgets import asked_budget
    from fxptq.facts import Overrides
    from fxptq.memory import parse_bytes
    from fxptq.progress import Silent
    from fxptq.ranks import joined
    from fxptq.report import console
    from fxptq.report import page as pages
    from fxptq.report.gather import of_quantize
    from fxptq.sizes import parse_size

    bits = Bits(w, a)
    asked = asked_budget(budget, target_bits, target_bytes, max_drop)
    name = Path(recipe or (weights and weights.stem) or (model or "network").split(":")[-1]).stem
    target = file or Path(f"{name}_{asked.label if asked else f'w{w}a{a}'}.safetensors")
    command.check_name(target)
    report = target.with_suffix(".html") if page else None
    beside = [Output("the report", report, PAGE)] if report is not None else []
    check_outputs(
        _outputs(json_out, Output("--out", target, CHECKPOINT), *beside),
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
        budget=asked,
        uniform=uniform,
        zero_on_grid=zero_on_grid,
        contrast=page,
        resume=resume,
        memory=None if memory is None else parse_bytes(memory),
    )
    with joined(device) as ranks:
        outcome = command.run(options, _progress() if ranks.first else Silent())
        if ranks.first:
            if report is not None:
                pages.write(of_quantize(outcome, _command_line()), report)
            _write_json(json_out, outcome.as_json())
            console.show_quantized(_tables(form), outcome, report)


@app.command(
    rich_help_panel=USE, epilog="Example: fxptq evaluate small.safetensors --data Set5=data/Set5 --integer --format md"
)
def evaluate(
    checkpoint: Checkpoint,
    data: Data = None,
    integer: Annotated[
        bool, typer.Option("--integer", help="Run on integer kernels instead of the simulation.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    jobs: Annotated[int, typer.Option(help="Number of processes that share the pictures.", rich_help_panel=MEANS)] = 1,
    json_out: JsonOut = None,
    form: Format = None,
) -> None:
    """Score a checkpoint on benchmarks."""
    from fxptq.commands import evaluate as command
    from fxptq.progress import Silent
    from fxptq.ranks import joined
    from fxptq.report import console

    check_outputs(_outputs(json_out), {"CKPT": checkpoint, "--model": model})
    options = command.Options(checkpoint, tuple(data or ()), model, integer, device, jobs)
    with joined(device) as ranks:
        scores = command.run(options, _progress() if ranks.first else Silent())
        if ranks.first:
            _write_json(json_out, command.as_json(scores))
            console.show_scores(_tables(form), scores)


@app.command(
    rich_help_panel=USE,
    epilog="Example: fxptq compare w4.safetensors w3.safetensors --data Set5=data/Set5",
)
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, or float.")],
    second: Annotated[
        Optional[str], typer.Argument(metavar="B", help="Another checkpoint; without it, A is compared with float.")
    ] = None,
    data: Data = None,
    file: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write the page, as .html.", rich_help_panel=RESULT)
    ] = Path("comparison.html"),
    model: Model = None,
    weights: Annotated[
        Optional[Path],
        typer.Option(help="Weights of the network in float, instead of the recipe's.", rich_help_panel=NETWORK),
    ] = None,
    device: Device = "auto",
    json_out: JsonOut = None,
    form: Format = None,
) -> None:
    """Compare two checkpoints, or a checkpoint with its network in float, on one page.

    The page shows B where it differs most from A; of one checkpoint, where it differs most from float.
    """
    from fxptq.commands import compare as command
    from fxptq.report import console, page
    from fxptq.report.gather import of_compare

    subjects = ("float", first) if second is None else (first, second)
    check_outputs(
        _outputs(json_out, Output("--out", file, PAGE)),
        {"A": subjects[0], "B": subjects[1], "--model": model, "--weights": weights},
    )
    comparison = command.run(subjects, tuple(data or ()), model, weights, _progress(), device=device)
    page.write(of_compare(comparison, _command_line()), file)
    _write_json(json_out, comparison.as_json())
    console.show_comparison(_tables(form), comparison, file)


@app.command(
    rich_help_panel=USE,
    epilog="Example: fxptq upscale small.safetensors photos/ large/ --ext webp --suffix _x4 --jobs 2",
)
def upscale(
    checkpoint: Checkpoint,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A picture, a folder (with the folders below it), or - for stdin.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="A .png, .jpg, .webp or .tif file, a folder, or - for stdout.")
    ],
    ext: Annotated[
        Optional[str],
        typer.Option(
            help="Format in a folder or on stdout: png (unless given), jpg, webp, tiff, or same as IN.",
            rich_help_panel=FILES,
        ),
    ] = None,
    suffix: Annotated[
        str, typer.Option(help="Added to the names in a folder, such as _x4.", rich_help_panel=FILES)
    ] = "",
    quality: Annotated[
        Optional[int],
        typer.Option(
            help="1 to 100, of JPEG (95 unless given) and WebP (lossless unless given).", rich_help_panel=FILES
        ),
    ] = None,
    alpha: Annotated[
        str,
        typer.Option(
            help="What enlarges transparency: bicubic or network.", autocompletion=_one_of("bicubic", "network")
        ),
    ] = "bicubic",
    skip: Annotated[
        bool, typer.Option("--skip-existing", help="Leave pictures that are there; do the rest.", rich_help_panel=FILES)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write pictures that are there anew.", rich_help_panel=FILES)
    ] = False,
    tile: Annotated[
        str,
        typer.Option(
            help="Input pixels of a tile; 0 for the whole picture; auto asks the free memory.", rich_help_panel=MEANS
        ),
    ] = "auto",
    overlap: Annotated[
        int, typer.Option(min=0, help="Input pixels that tiles share on each side.", rich_help_panel=MEANS)
    ] = 16,
    integer: Annotated[
        Optional[bool],
        typer.Option(
            "--integer/--simulated",
            help="Integer kernels or the simulation; by default the faster one.",
            rich_help_panel=MEANS,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Number of processes for a folder.", rich_help_panel=MEANS)] = 1,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Restore pictures with a checkpoint."""
    from fxptq.commands import upscale as command
    from fxptq.commands.pictures import STREAM, Existing, Names
    from fxptq.commands.restorer import Settings
    from fxptq.evaluate.tiling import Tiling

    settings = Settings(
        checkpoint,
        model,
        tiling=Tiling(command.parse_tile(tile), overlap),
        computation="auto" if integer is None else "integer" if integer else "simulated",
        device=device,
        alpha=cast("Any", alpha),
        quality=quality,
        names=Names(ext, suffix),
        existing=Existing(skip, overwrite),
        jobs=jobs,
    )
    done = command.run(source, target, settings, _progress())
    for path in done.written if target != STREAM else ():
        out.print(str(path))
    for pace in done.paces:
        if pace.gains:  # where integers lose, a warning has said so already
            _say(str(pace))
    if done.skipped:
        _say(f"{_counted(len(done.skipped), 'picture')} existed already (--overwrite writes them anew)")
    for failure in done.failed:
        _say(failure)
    if done.failed:
        whole = len(done.failed) + len(done.written)
        _say(f"{len(done.failed)} of {_counted(whole, 'picture')} could not be restored; the others are written")
        raise typer.Exit(1)


@app.command(
    rich_help_panel=USE, epilog="Example: fxptq export small.safetensors -o small.onnx, or: -o small.pt2 --size 64x64"
)
def export(
    checkpoint: Checkpoint,
    file: Annotated[
        Path,
        typer.Option("--out", "-o", help="Where to write: .onnx, or .pt2 for torch.export.", rich_help_panel=RESULT),
    ],
    size: Annotated[
        Optional[str],
        typer.Option(help="HEIGHTxWIDTH of a file for one size; without it, all sizes that one graph serves."),
    ] = None,
    opset: Annotated[int, typer.Option(help="The version of ONNX's operators, 21 to 25.")] = 21,
    integers: Annotated[
        bool, typer.Option("--integers", help="Refuse a network with sites that runtimes compute in float.")
    ] = False,
    model: Model = None,
    json_out: JsonOut = None,
    form: Format = None,
) -> None:
    """Write a checkpoint for other runtimes: ONNX with quantize-dequantize nodes, or torch.export.

    The file is compared with the simulation in ONNX Runtime, where that is installed, before it is written.
    """
    from fxptq.commands import export as command
    from fxptq.export.write import Settings
    from fxptq.report import console
    from fxptq.sizes import parse_size

    kind = TORCH_EXPORT if file.suffix == ".pt2" else ONNX
    check_outputs(_outputs(json_out, Output("--out", file, kind)), {"CKPT": checkpoint, "--model": model})
    settings = Settings(None if size is None else parse_size(size), opset, integers)
    exported = command.run(checkpoint, file, model, settings)
    _write_json(json_out, command.as_json(exported))
    console.show_exported(_tables(form), exported)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


@app.command(rich_help_panel=LOOK, epilog="Example: fxptq inspect swinir_x4 --w 3 --a 3 --graphml swinir.graphml")
def inspect(
    subject: Annotated[
        Optional[str], typer.Argument(metavar="[RECIPE|CKPT]", help="A recipe or a checkpoint; may be left out.")
    ] = None,
    w: Annotated[int, typer.Option("--w", help="Bits of weights to plan with.")] = 4,
    a: Annotated[int, typer.Option("--a", help="Bits of activations to plan with.")] = 4,
    model: Model = None,
    site: Sites = None,
    graphml: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Also write the graph as GraphML.")] = None,
    tensors: Annotated[
        bool,
        typer.Option(
            "--tensors", help="Show the tensors of a checkpoint's file instead: name, shape, bits, bytes, scale."
        ),
    ] = False,
    json_out: JsonOut = None,
    form: Format = None,
) -> None:
    """Show the sites of a network: name, kind, shapes, cost, role and bits."""
    from fxptq.bits import Bits
    from fxptq.commands import inspect as command
    from fxptq.report import console

    if tensors:
        check_outputs(_outputs(json_out), {"CKPT": subject})
        content = command.tensors(subject, graphml)
        _write_json(json_out, content.as_json())
        console.show_tensors(_tables(form), content)
        return
    drawn = [Output("--graphml", graphml, GRAPHML)] if graphml is not None else []
    check_outputs(_outputs(json_out, *drawn), {"RECIPE|CKPT": subject, "--model": model})
    sites = command.run(subject, Bits(w, a), model, graphml, tuple(site or ()))
    _write_json(json_out, command.as_json(sites))
    console.show_sites(_tables(form), sites)


@app.command(rich_help_panel=USE, epilog="Example: fxptq bench small.safetensors --size 128x128 --threads 1")
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
    form: Format = None,
) -> None:
    """Measure a checkpoint on this machine, beside the float network and the peers that are installed."""
    from fxptq.bench import measure
    from fxptq.report import console

    check_outputs(_outputs(json_out), {"CKPT": checkpoint, "--model": model})
    chosen = [name for group in way or () for name in group.split(",") if name]
    measured = measure.run(checkpoint, size, model, _progress(), only=chosen, threads=threads)
    _write_json(json_out, measured.as_json())
    console.show_bench(_tables(form), measured)


@app.command(rich_help_panel=LOOK, epilog="Example: fxptq recipes --format md")
def recipes(form: Format = None) -> None:
    """List the bundled recipes, and which of them run without a download."""
    from fxptq.commands import weights as command
    from fxptq.recipe import Recipe
    from fxptq.report import console

    found = [Recipe.load(name) for name in Recipe.names()]
    console.show_recipes(_tables(form), found, command.known())


@app.command(rich_help_panel=LOOK, epilog="Example: fxptq passes dqc")
def passes(
    name: Annotated[Optional[str], typer.Argument(metavar="NAME", help="A pass whose settings to list.")] = None,
    form: Format = None,
) -> None:
    """List the passes that recipes are made of, or the settings of one."""
    from fxptq.commands import passes as command
    from fxptq.report import console

    console.show_passes(_tables(form), command.run(name), settings=name is not None)


@app.command(rich_help_panel=LOOK, epilog="Example: fxptq doctor")
def doctor(json_out: JsonOut = None, form: Format = None) -> None:
    """Show what this machine can run, and what is missing."""
    from fxptq.commands import doctor as command
    from fxptq.report import console

    check_outputs(_outputs(json_out), {})
    checks = command.run()
    _write_json(json_out, command.as_json(checks))
    console.show_checks(_tables(form), checks)


@app.command(rich_help_panel=LOOK, epilog="Example: fxptq weights --download edsr_x4")
def weights(
    download: Annotated[
        Optional[str],
        typer.Option(metavar="RECIPE", help="Fetch a recipe's published weights.", autocompletion=_recipe_names),
    ] = None,
    form: Format = None,
) -> None:
    """List the weights known, bundled and cached, and where a published file belongs."""
    from fxptq.commands import weights as command
    from fxptq.report import console

    if download is not None:
        out.print(str(command.fetch(download, _progress())))
    console.show_weights(_tables(form), command.known())


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
