"""Several processes on one machine: the sums that they make, the network that they quantize, and what ends them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fxptq
from fxptq.ranks import ALONE, RankError, Ranks, joined
from tests import ranks_worker
from tests.ranks_worker import PASSES
from tests.tiny import RECIPE, picture, write_recipe

ROOT = Path(__file__).resolve().parents[1]

EXACT = ("minmax", "percentile", "dobi", "dobi2d")
"""Passes whose bounds do not depend on the number of processes."""


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended: exit status and standard error, by rank."""

    statuses: list[int]
    errors: list[str]

    @property
    def lines(self) -> list[str]:
        return [line for text in self.errors for line in text.splitlines()]


def launch(task: str, folder: Path, world: int, **environment: str) -> Ended:
    """Runs a task of ranks_worker.py in `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    common["FXPTQ_KERNELS"] = "none"  # a first compilation takes minutes
    processes = [
        subprocess.Popen(  # noqa: S603  # a file of these tests
            [sys.executable, "-m", "tests.ranks_worker", str(folder), task],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank), **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes[:-1]]
        if task == "stopped":  # as torchrun does in the end
            processes[-1].kill()
        errors.append(processes[-1].communicate(timeout=300)[1])
    finally:
        for process in processes:
            process.kill()
    return Ended([process.returncode for process in processes], errors)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


def test_one_process_changes_nothing() -> None:
    x = torch.rand(3)
    before = x.clone()
    ALONE.reduce([x])
    ALONE.average([x], 0.3)
    assert torch.equal(x, before)
    assert ALONE.share("abc") == "abc"
    assert ALONE.part(x) is x
    assert ALONE.gather(1) == [1]
    assert ALONE.mean(0.1, 3.0) == 0.1
    with joined() as ranks:
        assert ranks == ALONE


def test_shares_are_all_items() -> None:
    for world in (1, 2, 3, 5):
        parts = [Ranks(rank, world) for rank in range(world)]
        assert sorted(x for ranks in parts for x in ranks.share(range(11))) == list(range(11))
        assert torch.equal(torch.cat([ranks.part(torch.arange(4)) for ranks in parts]), torch.arange(4))


def test_shares_by_size_are_all_items_of_nearly_one_sum() -> None:
    sizes = [5, 90, 40, 0, 30, 20, 7]
    for world, largest in ((1, 193), (2, 97), (3, 90)):  # of the sums with a size of 0 counted as 1
        parts = [Ranks(rank, world).share_by_size(sizes) for rank in range(world)]
        assert sorted(i for part in parts for i in part) == list(range(7))
        assert max(sum(max(sizes[i], 1) for i in part) for part in parts) == largest
    assert Ranks(4, 5).share_by_size([1, 1]) == []


@pytest.mark.parametrize("world", [2, 3])
def test_sums_are_those_of_all_processes(tmp_path: Path, world: int) -> None:
    ended = launch("sums", tmp_path, world)
    assert (ended.statuses, ended.lines) == ([0] * world, [])
    found = torch.load(tmp_path / "sums.pt", weights_only=True)
    ranks, triangle = range(world), world * (world - 1) // 2
    assert torch.equal(found["values"], world * torch.arange(12.0).reshape(3, 4) + 100 * triangle)
    assert torch.equal(found["more"], torch.full((5,), float(triangle)))
    assert found["whole"].tolist() == [triangle + world]
    assert found["low"].tolist() == [0, 1 - world]
    assert found["high"].tolist() == [world - 1, 0]
    assert found["mean"].item() == pytest.approx(sum(r * r for r in ranks) / triangle)
    assert found["number"] == pytest.approx(sum(r * (1 + r) for r in ranks) / (world + triangle))
    assert found["totals"] == (world, world / 2)
    assert found["share"] == {str(i): (i, i % world) for i in range(7)}
    assert found["parts"] == [[0], [1], []][:world]
    assert (found["first"], found["largest"]) == ("of 0", world - 1)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks that one process quantizes."""
    folder = tmp_path_factory.mktemp("one")
    ended = launch("quantize", folder, 1)
    assert ended.statuses == [0]
    return folder


@pytest.mark.parametrize("world", [2, 3])
def test_processes_quantize_as_one(by_one: Path, tmp_path: Path, world: int) -> None:
    ended = launch("quantize", tmp_path, world)
    assert (ended.statuses, ended.errors[1:]) == ([0] * world, [""] * (world - 1))  # only the first one speaks
    for name in (f"{name}.safetensors" for name in PASSES):
        if name.partition(".")[0] in EXACT:
            assert (tmp_path / name).read_bytes() == (by_one / name).read_bytes(), name
        one, several = tensors(by_one / name), tensors(tmp_path / name)
        assert one.keys() == several.keys()
        networks = [fxptq.load(folder / name, model=ranks_worker.edsr()) for folder in (by_one, tmp_path)]
        outputs = [network(ranks_worker.pictures()) for network in networks]
        assert (outputs[0] - outputs[1]).abs().mean() <= 2e-3 * outputs[0].abs().mean(), name


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("task", "words"),
    [("unfit", "rank 1 of {}: .*calibration input 1"), ("others", "rank 1 of {} has calibration inputs other than")],
)
def test_an_error_is_told_once_and_ends_all(tmp_path: Path, world: int, task: str, words: str) -> None:
    ended = launch(task, tmp_path, world)
    assert ended.statuses == [1] * world
    (line,) = ended.lines
    with pytest.raises(RankError, match=words.format(world)):
        raise RankError(line)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="signals of POSIX")
@pytest.mark.parametrize(
    ("task", "world", "timeout"),
    [
        ("killed", 2, "1800"),
        pytest.param("killed", 3, "1800", marks=pytest.mark.slow),
        pytest.param("stopped", 2, "40", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_gone_is_named_and_ends_all(tmp_path: Path, task: str, world: int, timeout: str) -> None:
    ended = launch(task, tmp_path, world, FXPTQ_RANKS_TIMEOUT=timeout)
    assert all(ended.statuses)
    told = [line for line in ended.lines if line.startswith("rank")]
    assert len(told) == 1
    assert told[0].startswith(f"rank {world - 1} of {world} died or hangs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="signals of POSIX")
def test_processes_go_on_where_one_was_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch("kept", whole, 2).statuses == [0, 0]
    assert all(launch("kept_and_killed", killed, 2).statuses)
    assert {path.name for path in (killed / "state").iterdir()} == {"student.safetensors", "pass.safetensors"}
    assert not (killed / "kept.safetensors").exists()
    assert launch("kept", killed, 2).statuses == [0, 0]
    assert (killed / "kept.safetensors").read_bytes() == (whole / "kept.safetensors").read_bytes()
    ended = launch("kept", killed, 1)
    assert ended.statuses == [1]
    assert "number of processes 2, and this one has 1" in ended.lines[0]


def test_torchrun_writes_the_file_of_one_process(tmp_path: Path) -> None:
    text = RECIPE.replace("images = 2", "images = 3")
    recipe, weights = write_recipe(tmp_path, text)
    picture(tmp_path / "calib" / "a.png")
    picture(tmp_path / "calib" / "b" / "c.png", mode="L")
    command = ["-m", "fxptq", "quantize", "--recipe", recipe, "--weights", weights, "--device", "cpu"]
    command += ["--preset", "quick", "--calib", str(tmp_path / "calib"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start, out in (([], "one"), (run, "two")):
        ran = subprocess.run(  # noqa: S603  # this checkout
            [sys.executable, *start, *command, f"{out}.json", "--out", f"{out}.safetensors"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("tiny, W4A4") == 1
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    one, two = (json.loads((tmp_path / f"{out}.json").read_text()) for out in ("one", "two"))
    assert one["eval"] == two["eval"]
    pages = [(tmp_path / f"{out}.html").read_text() for out in ("one", "two")]
    pictures_of_each = [re.findall(r"data:image/[a-z]+;base64,[\w+/=]+", page) for page in pages]
    assert len(pictures_of_each[0]) > 4
    assert pictures_of_each[0] == pictures_of_each[1]
