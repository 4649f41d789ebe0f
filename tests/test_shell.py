"""Standard streams and arguments as shells leave them: a command's work is done, and what is wrong is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fxptq import shell
from tests.tiny import environment

REPOSITORY = Path(__file__).parents[1]
NET = "from torch import nn\ndef make(): return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)))\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def line(command: str, folder: Path, changes: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which FXPTQ is the command line."""
    text = command.replace("FXPTQ", f"{sys.executable} -m fxptq")
    bash = ["bash", "-o", "pipefail", "-c", text]
    changed = environment({"PYTHONPATH": str(REPOSITORY), **(changes or {})})
    return subprocess.run(bash, cwd=folder, env=changed, capture_output=True, text=True, check=False)  # noqa: S603


def test_a_reader_that_wants_no_more_loses_no_file(folder: Path) -> None:
    ran = line("FXPTQ inspect --model net:make --json j.json --graphml g.graphml | head -1", folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(json.loads((folder / "j.json").read_text())["sites"]) == 9
    assert b"<graphml" in (folder / "g.graphml").read_bytes()


def test_a_full_standard_output_is_one_line_and_loses_no_file(folder: Path) -> None:
    ran = line("FXPTQ inspect --model net:make --json j.json > /dev/full", folder)
    assert ran.returncode == 1
    assert ran.stderr == "fxptq: standard output cannot be written: No space left on device\n"
    assert (folder / "j.json").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed: str, folder: Path) -> None:
    ran = line(f"FXPTQ inspect --model net:make --json j.json {closed}", folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(json.loads((folder / "j.json").read_text())["sites"]) == 9


def test_json_to_standard_output(folder: Path) -> None:
    ran = line("FXPTQ inspect --model net:make --json /dev/stdout > all.txt && FXPTQ recipes > /dev/null", folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    text = (folder / "all.txt").read_text()
    content, end = json.JSONDecoder().raw_decode(text)
    assert len(content["sites"]) == 9
    assert "Sites" in text[end:]
    assert Path("/dev/stdout").is_symlink()


def test_json_into_a_process(folder: Path) -> None:
    ran = line("FXPTQ inspect --model net:make --json >(cat > got.json; echo done > end) > /dev/null; "
               "until [ -e end ]; do sleep 0.1; done", folder)  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(json.loads((folder / "got.json").read_text())["sites"]) == 9


def test_an_ascii_terminal(folder: Path) -> None:
    (folder / "größe.toml").write_text('name = "x"\ntitle = "é"\n[model]\nfactory = "net:make"\n', encoding="utf-8")
    ran = line("FXPTQ inspect größe.toml && FXPTQ inspect süß", folder, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "no recipe 's" in ran.stderr


@pytest.mark.parametrize("option", ["--json '~/j.json'", "--json=~/j.json", '--json "$HOME"/j.json'])
def test_a_home_folder_is_found(option: str, folder: Path) -> None:
    (folder / "home").mkdir()
    ran = line(f"FXPTQ inspect --model net:make {option}", folder, {"HOME": str(folder / "home")})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (folder / "home" / "j.json").exists()
    assert not (folder / "~").exists()


def test_arguments_without_a_home_are_as_they_were() -> None:
    home = str(Path.home())
    assert shell.expanded(["~", "~/a", "--out=~/b", "x=~/c", "a~b", "~nobody-of-that-name/x", "*=W3A4", "a/b=~/c"]) == [
        home, f"{home}/a", f"--out={home}/b", f"x={home}/c", "a~b", "~nobody-of-that-name/x", "*=W3A4", "a/b=~/c",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["n" * 300, "n" * 5000, "a/" * 3000])
@pytest.mark.parametrize(
    "command", ["inspect NAME", "evaluate NAME", "upscale NAME a.png b.png", "inspect x --json NAME"]
)
def test_a_name_that_is_too_long_is_one_line(command: str, name: str, folder: Path) -> None:
    ran = line("FXPTQ " + command.replace("NAME", name), folder)
    assert ran.returncode in {1, 2}
    assert len(ran.stderr.splitlines()) == 1
    assert "Traceback" not in ran.stderr
    assert "fault of fxptq" not in ran.stderr


def test_no_home_and_no_entry_among_the_users(folder: Path) -> None:
    if os.getuid():
        pytest.skip("only root can become a user without an entry")
    program = (
        "import os, fxptq.api, fxptq.commands.weights, fxptq.report.console, fxptq.cli, sys\n"
        "os.environ.pop('HOME', None), os.environ.pop('XDG_CACHE_HOME', None)\n"
        "os.setgid(43210), os.setuid(43210)\n"
        "sys.argv = ['fxptq', 'weights', *sys.argv[1:]]\nfxptq.cli.main()"
    )
    changed = environment({"PYTHONPATH": str(REPOSITORY)})
    for args, status, words in (
        ([], 0, ""),
        (["--download", "edsr_x2"], 2, "this user has no home folder to keep a cache in; set XDG_CACHE_HOME"),
    ):
        ran = subprocess.run(  # noqa: S603  # our own
            [sys.executable, "-c", program, *args], cwd="/", env=changed, capture_output=True, text=True, check=False
        )
        assert ran.returncode == status, ran.stderr
        assert words in ran.stderr
        assert len(ran.stderr.splitlines()) == bool(words)


@pytest.mark.parametrize("after", [0.25, 0.5, 1.0])
def test_an_interrupt_while_loading_is_one_line(after: float, folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fxptq", "inspect", "--model", "net:make"],
        cwd=folder,
        env=environment({"PYTHONPATH": str(REPOSITORY)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # one thread, one call
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("it was done before the interrupt")
    if process.returncode == -signal.SIGINT:
        pytest.skip("Python itself was not yet up")
    assert (process.returncode, err) == (130, "fxptq: interrupted\n")


SWALLOWED = """
import signal, time
from fxptq.shell import Interrupts

class Swallows:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

with Interrupts():
    try:
        Swallows()
        time.sleep(30)
    except KeyboardInterrupt:
        print("struck")
"""


def test_an_interrupt_that_python_would_only_report_strikes_again() -> None:
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{SWALLOWED}"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603  # ourselves
    assert (ran.stdout, ran.stderr) == ("struck\n", "")


IMPORTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from fxptq import shell
shell._POSTPONED = {limit}
loads = "import signal, time\\nsignal.raise_signal(2)\\n[time.sleep(0.01) for _ in range(9)]\\nprint('loaded')"

with shell.Interrupts() as interrupts:
    try:
        exec(compile(loads, "init.py", "exec"), {{"__name__": "{name}"}})
        import time
        time.sleep(30)
    except KeyboardInterrupt:
        print("struck", interrupts.struck)
"""


@pytest.mark.parametrize(
    ("name", "limit", "printed"),
    [
        ("torch.autograd", 500, "loaded\nstruck True\n"),
        ("torch.autograd", 3, "struck True\n"),  # an import that does not end cannot hold it back
        ("net", 500, "struck True\n"),
    ],
    ids=["compiled package", "it hangs", "a user's file"],
)
def test_an_interrupt_waits_for_the_import_of_a_compiled_package(name: str, limit: int, printed: str) -> None:
    command = [sys.executable, "-c", IMPORTED.format(name=name, limit=limit)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603  # ourselves
    assert (ran.stdout, ran.stderr) == (printed, "")


def test_one_line_moves_no_cursor() -> None:
    assert shell.one_line("a\n  b\x1b[31m\x07c\udc80é") == "a b\\x1b[31m\\x07c\\udc80é"
