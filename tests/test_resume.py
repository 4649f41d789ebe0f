"""A run that was killed goes on and ends with the bytes of a run that was not; the folder of another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import fxptq
from fxptq import resume
from fxptq.checkpoint.student import restore_student, student_state
from fxptq.errors import InputError
from fxptq.graph import Program
from fxptq.io.state_file import State, read_state, write_state
from fxptq.passes import base
from fxptq.passes.base import Pass, PassReport, register
from fxptq.quant.sketch import Sketch
from tests.resume_worker import WRITES, quantize
from tests.tiny import RECIPE, edsr, inputs, run, settings, write_recipe

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@dataclass(frozen=True)
class Runs:
    """Carries out runs in processes that may be killed."""

    process: subprocess.Popen[str]

    def __call__(self, folder: Path | None, out: Path, number: int = 0, moment: str = "") -> tuple[int, list[str]]:
        """A run, killed when it writes its state of that number: how it ended, and the passes that began."""
        order = {"folder": str(folder or ""), "out": str(out), "number": number, "moment": moment}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        status, ran = json.loads(self.process.stdout.readline())
        return status, ran


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FXPTQ_KERNELS": "none"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.resume_worker"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Runs(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run that keeps no state."""
    out = tmp_path_factory.mktemp("whole") / "out.safetensors"
    assert runs(None, out) == (0, ["observe", "dobi", "moments", "gptq", "dqc"])
    return out.read_bytes()


KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("state", "moment", "passes"),
    [
        ("observe", "before", ["observe", "dobi", "moments", "gptq", "dqc"]),
        ("observe", "within", ["observe", "dobi", "moments", "gptq", "dqc"]),
        ("observe", "after", ["dobi", "moments", "gptq", "dqc"]),
        ("dobi", "after", ["moments", "gptq", "dqc"]),
        ("moments", "after", ["gptq", "dqc"]),
        ("gptq", "within", ["gptq", "dqc"]),
        ("gptq", "after", ["dqc"]),
        ("step 1", "after", ["dqc"]),
        ("step 2", "within", ["dqc"]),
        ("step 3", "after", ["dqc"]),
        ("step 5", "after", ["dqc"]),
        ("dqc", "before", ["dqc"]),
        ("dqc", "after", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_that_was_killed_ends_with_the_same_bytes(
    runs: Runs, whole: bytes, tmp_path: Path, state: str, moment: str, passes: list[str]
) -> None:
    folder, out = tmp_path / "state", tmp_path / "out.safetensors"
    assert runs(folder, out, 1 + WRITES.index(state), moment)[0] == KILLED
    assert not out.exists()
    assert runs(folder, out) == (0, passes)
    assert out.read_bytes() == whole
    assert {path.name for path in folder.iterdir()} <= {"student.safetensors", "pass.safetensors"}  # no half file


def test_a_run_may_be_killed_again_and_again(runs: Runs, whole: bytes, tmp_path: Path) -> None:
    folder, out = tmp_path / "state", tmp_path / "out.safetensors"
    ends = [runs(folder, out, 2, "after")[0] for _ in range(4)]  # each run saves two states
    assert ends == [KILLED] * 4
    assert runs(folder, out) == (0, ["dqc"])
    assert out.read_bytes() == whole


def test_a_run_that_is_done_is_not_repeated(runs: Runs, whole: bytes, tmp_path: Path) -> None:
    folder, out = tmp_path / "state", tmp_path / "out.safetensors"
    assert runs(folder, out)[0] == 0
    assert out.read_bytes() == whole
    out.unlink()
    assert runs(folder, out) == (0, [])
    assert out.read_bytes() == whole


class StopError(Exception):
    """Stands for a signal where a process of its own is not worth its time."""


def stopped(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], object]) -> None:
    """Does work that ends when the state of that number, from 1, has been written."""
    calls = 0

    def write(path: Path, state: State) -> None:
        nonlocal calls
        write_state(path, state)
        calls += 1
        if calls == number:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write_state", write)
        patch.setattr(resume, "INTERVAL_S", 0.0)
        with pytest.raises(StopError):
            work()


DQC = "steps = 8, batch = 2, patch = 8, holdout_crops = 2"


@pytest.mark.parametrize(
    "training",
    [
        "eval_every = 3, crops = 6, lr = 0.1",
        "eval_every = 1, lr = 3.0, backoff = 0.5",
        "eval_every = 2, lr = 0.1, rounding_lr = 0.5",
        "eval_every = 2, lr = 0.1, keep_codes = true, vector_lr = 0.01, warmup = 3",
        "eval_every = 1, lr = 4.0, patience = 6, backoff = 1.0, weight_lr = 0.0",  # nothing gets better: six steps
    ],
    ids=["repeated-crops", "retreats", "offsets", "kept-codes-and-vectors", "patience"],
)
@pytest.mark.parametrize("number", [4, 7])
def test_a_training_goes_on_with_all_of_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: str, number: int
) -> None:
    passes = f'{{ name = "minmax" }}, {{ name = "dqc", {DQC}, {training} }}'  # two states before the steps
    quantize(None, tmp_path / "whole.safetensors", passes)
    stopped(monkeypatch, number, lambda: quantize(tmp_path / "state", tmp_path / "out.safetensors", passes))
    assert (tmp_path / "state" / "pass.safetensors").exists()
    quantize(tmp_path / "state", tmp_path / "out.safetensors", passes)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_reports_are_those_of_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reports(folder: Path | None) -> list[PassReport]:
        passes = settings(f'{{ name = "dobi", k = 20 }}, {{ name = "dqc", {DQC}, eval_every = 2 }}')
        return list(fxptq.quantize(edsr(), inputs(1), 4, inputs(3), passes, scale=2, resume=folder).report)

    stopped(monkeypatch, 5, lambda: reports(tmp_path))
    for ours, theirs in zip(reports(tmp_path), reports(None), strict=True):
        assert ours.name == theirs.name
        assert (ours.quantizers, ours.series, ours.notes) == (theirs.quantizers, theirs.series, theirs.notes)
        assert ours.sketches == theirs.sketches
        assert all(isinstance(sketch, Sketch) for sketch in ours.sketches.values())


# -- folders that do not fit -----------------------------------------------------------------------------------------


def attempt(folder: Path, **changes: Any) -> None:
    call: dict[str, Any] = {
        "model": edsr(),
        "example": inputs(1),
        "bits": 4,
        "calib": inputs(2),
        "recipe": settings('{ name = "minmax" }'),
        "scale": 2,
        **changes,
    }
    fxptq.quantize(**call, resume=folder)


class Wider(torch.nn.Module):
    """The tensors of a network under the same names, in another computation."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_own"] = edsr()
        for name, child in self._own.named_children():
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._own(x) + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, "which has seed 0, and this one has 3"),
        ({"bits": "W3A4"}, "bits W4A4, and this one has W3A4"),
        ({"model": edsr(1)}, "other weights"),
        ({"model": Wider()}, "other network"),
        ({"calib": inputs(2, seed=5)}, "other calibration inputs"),
        ({"recipe": settings('{ name = "percentile" }')}, "other passes"),
        ({"sites": {"*": 8}}, "other settings"),
        ({"example": inputs(1, seed=9)}, "other example"),
    ],
    ids=["seed", "bits", "weights", "network", "pictures", "passes", "sites", "example"],
)
def test_the_folder_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    attempt(tmp_path)
    before = (tmp_path / "student.safetensors").read_bytes()
    with pytest.raises(InputError) as error:
        attempt(tmp_path, **change)
    assert str(error.value).startswith(f"{tmp_path} is the folder of another run, ")
    assert words in str(error.value)
    assert (tmp_path / "student.safetensors").read_bytes() == before


def test_the_folder_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(tmp_path)
    monkeypatch.setattr(resume, "__version__", "9.9")
    with pytest.raises(InputError, match=r"fxptq version \S+, and this one has 9\.9"):
        attempt(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: data[:0],
        lambda data: data.replace(b'"done\\":1', b'"done\\":0'),
    ],
    ids=["cut", "a-bit", "empty", "a-number"],
)
@pytest.mark.parametrize("name", ["student", "pass"])
def test_a_damaged_file_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[bytes], bytes]
) -> None:
    passes = f'{{ name = "minmax" }}, {{ name = "dqc", {DQC} }}'
    stopped(monkeypatch, 4, lambda: quantize(tmp_path, tmp_path / "out.safetensors", passes))
    path = tmp_path / f"{name}.safetensors"
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    with pytest.raises(InputError) as error:
        quantize(tmp_path, tmp_path / "out.safetensors", passes)
    assert str(error.value).startswith(f"{path}: damaged")
    assert "\n" not in str(error.value)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    with pytest.raises(InputError, match="is a file; expected the name of a folder"):
        attempt(tmp_path / "state")


# -- passes of other packages ----------------------------------------------------------------------------------------


def test_passes_of_other_packages_go_on_behind_their_own_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    """What a pass keeps elsewhere than in the context is not saved, so the run begins again where it was gathered."""
    began: list[str] = []

    @dataclass(frozen=True)
    class NoSettings:
        pass

    @register("brew")
    class Brew(Pass):
        Settings = NoSettings
        provides: ClassVar[frozenset[str]] = frozenset({"leaves"})

        def run(self, ctx: Any) -> PassReport:
            began.append("brew")
            ctx.leaves = 0.5
            return PassReport()

    @register("pour")
    class Pour(Pass):
        Settings = NoSettings
        needs: ClassVar[frozenset[str]] = frozenset({"leaves"})

        def run(self, ctx: Any) -> PassReport:
            began.append("pour")
            for key in ctx.student.quantizers:
                if (bias := ctx.student.bias_of(key)) is not None:
                    ctx.student.set_bias(key, bias + ctx.leaves)
            return PassReport()

    passes = '{ name = "minmax" }, { name = "brew" }, { name = "dobi" }, { name = "pour" }, { name = "percentile" }'
    quantize(None, tmp_path / "whole.safetensors", passes)
    for number, expected in ((2, ["brew", "pour"]), (3, [])):
        folder, out = tmp_path / f"state{number}", tmp_path / f"out{number}.safetensors"
        stopped(monkeypatch, number, lambda: quantize(folder, out, passes))  # noqa: B023  # called at once
        began.clear()
        quantize(folder, out, passes)
        assert began == expected
        assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards, passes that the test has registered are unknown again."""
    monkeypatch.setattr(base, "_PASSES", base._PASSES.apart())


# -- the parts -------------------------------------------------------------------------------------------------------


def test_a_state_keeps_every_bit(tmp_path: Path) -> None:
    odd = [float("inf"), float("nan"), -0.0, 5e-324, 0.1]
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    tensors = {f"a/{kind}.b": torch.arange(6).to(kind).reshape(2, 3).t() for kind in kinds}
    tensors |= {"odd": torch.tensor(odd, dtype=torch.float64), "none": torch.zeros(0, 3), "one": torch.tensor(True)}
    write_state(tmp_path / "s.safetensors", State({"numbers": odd[2:], "x": {"y": None}}, tensors))
    state = read_state(tmp_path / "s.safetensors")
    assert state is not None
    assert state.numbers == {"numbers": odd[2:], "x": {"y": None}}
    assert state.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        own = state.tensors[name]
        assert (own.dtype, own.shape) == (tensor.dtype, tensor.shape)
        assert own.contiguous().view(-1).tolist().__repr__() == tensor.contiguous().view(-1).tolist().__repr__()
    assert read_state(tmp_path / "other.safetensors") is None


@pytest.mark.parametrize("schemes", ["", '"*.input" = "affine", "*.weight" = "affine"'], ids=["uniform", "affine"])
def test_a_student_gets_its_state_back(schemes: str) -> None:
    passes = settings('{ name = "observe" }, { name = "dobi2d", k = 10 }, { name = "channels", stages = 1 }')
    quantized = passes.quantize.model_copy(update={"schemes": {"*.input": "affine", "*.weight": "affine"}})
    recipe = passes.model_copy(update={"quantize": quantized}) if schemes else passes
    states: list[State] = []
    outputs: list[torch.Tensor] = []
    x = inputs(1, seed=4)

    def keep(name: str, student: Program) -> None:
        state = student_state(student)
        states.append(State(state.numbers, {key: tensor.detach().clone() for key, tensor in state.tensors.items()}))
        with torch.no_grad():
            outputs.append(student(x))

    def put(name: str, student: Program) -> None:
        if name != "observe":
            return
        for state, output in zip(states, outputs, strict=True):
            restore_student(student, State(json.loads(json.dumps(state.numbers)), state.tensors))
            with torch.no_grad():
                assert torch.equal(student(x), output)

    fxptq.quantize(edsr(), inputs(1), 3, inputs(3), recipe, scale=2, after_pass=keep)
    fxptq.quantize(edsr(), inputs(1), 3, inputs(3), recipe, scale=2, after_pass=put)
    assert not torch.equal(outputs[0], outputs[1])


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_command_goes_on_with_the_scores_of_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, weights = write_recipe(tmp_path, RECIPE)

    def command(name: str, *options: object) -> dict[str, Any]:
        ran = run(
            "quantize", "--recipe", recipe, "--weights", weights, "--out", tmp_path / f"{name}.safetensors",
            "--json", tmp_path / f"{name}.json", "--no-report", *options,
        )  # fmt: skip
        assert (ran.status, ran.err) == (0, "")
        evaluated: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())["eval"]
        return evaluated

    scores = command("whole")
    calls = 0

    def write(path: Path, state: State) -> None:
        nonlocal calls
        write_state(path, state)
        calls += 1
        if calls == 4:  # behind observe, dobi, the scores and a step
            raise InputError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write_state", write)
        patch.setattr(resume, "INTERVAL_S", 0.0)
        ran = run("quantize", "--recipe", recipe, "--weights", weights, "--out", tmp_path / "out.safetensors", "--no-report", "--resume", tmp_path / "state")  # fmt: skip # noqa: E501
        assert ran.line == "stop"
    assert not (tmp_path / "out.safetensors").exists()
    assert command("out", "--resume", tmp_path / "state") == scores
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
