"""The command line as a process: exit status, one line for people, nothing half written; and how it is laid out."""

from __future__ import annotations

import json
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fxptq
from tests.test_start import COMMANDS
from tests.tiny import OWN, RECIPE, environment, picture, run, spawn, write_checkpoint, write_recipe

ENDLESS = RECIPE.replace("steps = 2,", "steps = 1000000,")
BROKEN = OWN.replace("/ 0.0", "/ (0.0 * x.mean())")


def leftovers(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if ".part" in file.name or file.suffix == ".safetensors")


def test_done(tmp_path: Path) -> None:
    recipe, weights = write_recipe(tmp_path)
    ran = spawn(
        ["quantize", "--recipe", recipe, "--weights", weights, "--preset", "quick", "--json", "r.json"], tmp_path
    )
    assert (ran.status, ran.err) == (0, "")
    assert "checkpoint  tiny_w4a4.safetensors" in ran.out.splitlines()
    assert "report      tiny_w4a4.html" in ran.out.splitlines()
    assert json.loads((tmp_path / "r.json").read_text())["bits"] == {"w": 4, "a": 4}
    assert leftovers(tmp_path) == ["tiny_w4a4.safetensors", "tiny_weights.safetensors"]


def test_bad_input(tmp_path: Path) -> None:
    ran = spawn(["quantize", "--recipe", "swinir_x5"], tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert "no recipe 'swinir_x5'; did you mean 'swinir_x" in ran.line


def test_failure(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    ran = spawn(["quantize", "--model", "mine:Broken", "--preset", "quick"], tmp_path)
    assert (ran.status, ran.out) == (1, "")
    assert "not finite" in ran.line
    assert leftovers(tmp_path) == []


def test_interrupted_nothing_is_left(tmp_path: Path) -> None:
    recipe, weights = write_recipe(tmp_path, ENDLESS)
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom fxptq.recipe import Recipe\n"
        f"def make():\n    Path('started').touch()\n    return Recipe.load({recipe!r}).build_model()\n"
    )
    command = ["quantize", "--model", "mine:make", "--recipe", recipe, "--weights", weights, "--out", "m.safetensors"]
    process = subprocess.Popen(  # noqa: S603  # our own
        [sys.executable, "-m", "fxptq", *command],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a shell runs in its background ignores Ctrl-C, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # one thread, one call
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    time.sleep(4)  # into the passes, the last of which would never end
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "fxptq: interrupted\n")
    assert leftovers(tmp_path) == ["tiny_weights.safetensors"]
    assert not (tmp_path / "m.html").exists()


def test_full_disk(tmp_path: Path) -> None:
    recipe, weights = write_recipe(tmp_path)
    out = tmp_path / "m.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        ran = run("quantize", "--recipe", recipe, "--weights", weights, "--preset", "quick", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.status == 2
    assert ran.line == f"{out}: cannot be written: File too large"
    assert leftovers(tmp_path) == ["tiny_weights.safetensors"]


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_unwritable_place_is_found_before_the_work(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("fxptq.commands.quantize.open_network", lambda *_: pytest.fail("the work has begun"))
    place = tmp_path / "file" / "m.safetensors"
    ran = run("quantize", "--recipe", "swinir_x4", option, place)
    assert (ran.status, ran.line) == (
        2,
        f"{place}: cannot be written: something in {place.parent} is a file and no folder",
    )


# -- outputs and inputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kept", "words"),
    [
        (["quantize", "Q", "--out", "WEIGHTS"], "WEIGHTS", "--out WEIGHTS: would overwrite the file that --weights"),
        (["quantize", "Q", "--json", "WEIGHTS"], "WEIGHTS", "--json WEIGHTS: would overwrite the file that --weights"),
        (["quantize", "Q", "--json", "RECIPE"], "RECIPE", "--json RECIPE: would overwrite the file that --recipe"),
        (["quantize", "Q", "--out", "n.safetensors", "--json", "n.safetensors"], "", "is the file that --out writes"),
        (["quantize", "Q", "--out", "n.safetensors", "--json", "n.html"], "", "is the file that the report writes"),
        (["quantize", "Q", "--out", "mine.safetensors"], "mine.html", "the report mine.html: exists and is not"),
        (
            ["quantize", "Q", "--out", "other.safetensors"],
            "other.safetensors",
            "exists and is not a checkpoint of fxptq",
        ),
        (["evaluate", "CKPT", "--model", "mod:tiny", "--json", "CKPT"], "CKPT", "that CKPT names"),
        (["evaluate", "CKPT", "--model", "mod:tiny", "--json", "mod.py"], "mod.py", "that --model names"),
        (["inspect", "CKPT", "--model", "mod:tiny", "--graphml", "CKPT"], "CKPT", "that RECIPE|CKPT names"),
        (["inspect", "RECIPE", "--graphml", "other.py"], "other.py", "exists and is not GraphML"),
        (["inspect", "RECIPE", "--json", "x", "--graphml", "x"], "", "is the file that --graphml writes"),
        (["bench", "CKPT", "--model", "mod:tiny", "--json", "CKPT"], "CKPT", "that CKPT names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_is_written_over_what_is_read_or_not_ours(
    args: list[str], kept: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    write_checkpoint(tmp_path)
    (tmp_path / "mine.html").write_text("<!doctype html><html lang=en>my own page")
    (tmp_path / "other.py").write_text("import torch\n")
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "tiny_weights.safetensors").read_bytes())
    names = {"CKPT": "tiny.safetensors", "RECIPE": "tiny.toml", "WEIGHTS": "tiny_weights.safetensors"}
    filled = [names.get(arg, arg) for arg in args]
    if "Q" in filled:
        filled[1:2] = ["--recipe", "tiny.toml", "--weights", "tiny_weights.safetensors", "--preset", "quick"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    ran = run(*filled)
    for name, file in names.items():
        words = words.replace(f" {name}:", f" {file}:")
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.line
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not kept or (tmp_path / names.get(kept, kept)) in before


def test_a_second_run_writes_over_the_first(tmp_path: Path) -> None:
    recipe, weights = write_recipe(tmp_path)
    place = ["--out", tmp_path / "m.safetensors", "--json", tmp_path / "r.json"]
    for _ in range(2):
        ran = run("quantize", "--recipe", recipe, "--weights", weights, "--preset", "quick", *place)
        assert (ran.status, ran.err) == (0, "")


# -- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command 'nonsense'; see fxptq --help"),
        (["quantize", "--w", "x"], r"Invalid value for '--w': .*; see fxptq quantize --help"),
        (["quantize", "--seed", "1.5"], r"Invalid value for '--seed': .*; see fxptq quantize --help"),
        (["quantize", "--bits", "4"], "No such option: --bits.*; see fxptq quantize --help"),
        (["evaluate"], "Missing argument 'CKPT'; see fxptq evaluate --help"),
        (["upscale", "a.safetensors", "b.png"], "Missing argument 'OUT'; see fxptq upscale --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line(args: list[str], message: str) -> None:
    ran = run(*args)
    assert (ran.status, ran.out) == (2, "")
    assert re.fullmatch(message, ran.line), ran.line


def test_no_command_shows_what_there_is() -> None:
    ran = run()
    assert (ran.status, ran.err) == (2, "")
    for command in ("quantize", "evaluate", "upscale", "inspect", "bench", "recipes", "weights"):
        assert command in ran.out
        shown = run(command, "--help")
        assert (shown.status, shown.err) == (0, "")
        assert f"fxptq {command}" in shown.out


def test_a_message_of_many_lines_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise fxptq.FxptqError("one\n  two\nthree  [red]four[/red]")

    monkeypatch.setattr("fxptq.recipe.Recipe.names", lambda: ["a"])
    monkeypatch.setattr("fxptq.recipe.Recipe.load", fail)
    ran = run("recipes")
    assert (ran.status, ran.line) == (1, "one two three  [red]four[/red]")


def test_recipes_say_which_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = {line.split()[0]: line for line in run("recipes").out.splitlines() if line.strip()}
    assert " at once " in rows["swinir_x4"]
    assert " after a download " in rows["swinir_x3"]
    assert all(" with a network of yours " in rows[name] for name in ("default", "pairs"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_parses(command: str) -> None:
    shown = " ".join(run(command, "--help").out.split())
    example = shown.partition("Example: fxptq ")[2]
    assert example.startswith(command)
    options = {word for word in example.split() if word.startswith("--")}
    assert all(shown.count(option) > 1 for option in options), options


@pytest.mark.parametrize("alias", ["--data", "--eval"])
@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_benchmarks_have_one_name_and_an_alias(command: str, alias: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    first = ["--recipe", "swinir_x4"] if command == "quantize" else [tmp_path / "tiny.safetensors", "--model", "x:y"]
    out = ["-o", tmp_path / "m.safetensors"] if command == "quantize" else []
    ran = run(command, *first, *out, alias, "nonsense")
    assert ran.status == 2
    assert "nonsense" in ran.line or "x:y" in ran.line
    assert "No such option" not in ran.line


def test_tables_in_markdown(tmp_path: Path) -> None:
    ran = run("recipes", "--format", "md")
    assert "| name | network | runs | presets |" in ran.out.splitlines()
    assert run("recipes", "--format", "html").line == "--format 'html': expected table, plain or md"
    assert not set(run("recipes").out) & set("│┃─━")


def test_the_next_command_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, weights = write_recipe(tmp_path)
    ran = run("quantize", "--recipe", recipe, "--weights", weights, "--preset", "quick", "-o", "a b.safetensors")
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next ")]
    picture(tmp_path / "in.png", 9)
    program, *words = shlex.split(line.removeprefix("next"))
    assert program == "fxptq"
    ran = run(*words[:-2], "in.png", "out.png")
    assert (ran.status, ran.out) == (0, "out.png\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fxptq qu", {"quantize"}),
        ("fxptq quantize --recipe edsr", {"edsr_x2", "edsr_x3", "edsr_x4"}),
        ("fxptq quantize --preset q", {"quick"}),
        ("fxptq upscale --al", {"--alpha"}),
        ("fxptq evaluate --format m", {"md"}),
    ],
)
def test_the_shell_completes(typed: str, offered: set[str], tmp_path: Path) -> None:
    words = {"_FXPTQ_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    ran = subprocess.run(  # our own
        [sys.executable, "-m", "fxptq"],
        cwd=tmp_path,
        env=environment(words),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(ran.stdout.split()) == offered


def test_recipes_are_listed_with_their_presets() -> None:
    ran = run("recipes")
    assert ran.status == 0
    for name in fxptq.Recipe.names():
        row = next(line for line in ran.out.splitlines() if f" {name} " in line)
        assert "quick, standard, best, paper" in row
