"""Where a run is: its stages and the time left, as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fxptq.commands.quantize import stages_of
from fxptq.commands.upscale import TileBar
from fxptq.progress import Advance, Lines, RichProgress, Silent
from fxptq.stages import Run, Stage, shown_seconds


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_goes_by_weights_and_then_by_steps() -> None:
    clock = Clock()
    run = Run("quantize", [Stage("a"), Stage("b", 3.0), Stage("c", 2.0)], clock)
    clock.now = 5.0
    assert (run.seconds_left(), run.fraction()) == (None, 0.0)
    clock.now = 10.0
    run.next()  # a weight of 1 took 10 seconds
    assert run.seconds_left() == pytest.approx(50.0)
    clock.now = 20.0
    assert run.seconds_left() == pytest.approx(40.0)
    assert run.fraction() == pytest.approx(20 / 60)
    run.steps(0.25)  # b takes 40 seconds by its own steps: 4 weights took 50, so 2 take 25
    assert run.seconds_left() == pytest.approx(30 + 25)
    clock.now = 50.0
    run.next()
    run.next()
    assert (run.current, run.seconds_left(), run.fraction(), run.done) == (None, 0.0, 1.0, [10.0, 40.0, 0.0])


@given(st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.01, 1e4)), min_size=1, max_size=6))
def test_an_even_machine_is_foretold(parts: list[tuple[float, float]]) -> None:
    """Where each weight takes the same time, the estimate is right after the first stage."""
    clock = Clock()
    run = Run("r", [Stage(str(i), weight) for i, (weight, _) in enumerate(parts)], clock)
    total = 2.0 * sum(weight for weight, _ in parts)
    for weight, _ in parts:
        clock.now += 2.0 * weight
        run.next()
        assert run.seconds_left() == pytest.approx(total - clock.now, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59.2, "59 s"), (61, "1 min"), (3540, "59 min"), (4800, "1 h 20 min")]
)
def test_spans_of_time(seconds: float, shown: str) -> None:
    assert shown_seconds(seconds) == shown


def test_lines_are_silent_before_the_first_minute() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    with lines.run("quantize", [Stage("a"), Stage("b")]) as next_stage:
        with lines.task("scores", 4) as advance:
            advance()
        next_stage()
        next_stage()
    assert said == []


def test_lines_say_every_stage_once_they_speak() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    with lines.run("quantize x", [Stage("scores"), Stage("dqc"), Stage("more")]) as next_stage:
        next_stage()
        with lines.task("dqc", 4) as advance:
            advance(note="loss 0.5")
            lines._tell()
            advance(2)
            lines._tell()
        next_stage()
        next_stage()
    assert said[0] == "quantize x, 1 of 3: scores, 0 s"
    assert said[1].startswith("quantize x, 2 of 3: dqc 1 of 4 (loss 0.5), 0 s so far, about ")
    assert said[2].startswith("quantize x, 2 of 3: dqc 3 of 4, 0 s so far")
    assert said[3:] == ["quantize x, 2 of 3: dqc, 0 s", "quantize x, 3 of 3: more, 0 s"]


def test_lines_come_by_themselves() -> None:
    said: list[str] = []
    lines = Lines(said.append, pause=0.001)
    with lines.task("upscale", 3) as advance, lines.task("tiles of a.png", 9):
        advance()
        while not said:
            pass
    assert said[0].startswith("upscale ")
    count = len(said)
    with lines.task("another", 1):
        pass
    assert all(line.startswith("upscale") for line in said[:count])


def test_bars_lie_below_each_other_and_the_whole_comes_first() -> None:
    out = io.StringIO()
    bars = RichProgress(Console(file=out, force_terminal=True, width=150))
    with bars.run("quantize x", [Stage("scores"), Stage("dqc", 2.0)]) as next_stage:
        with bars.task("float on Set5", 5) as advance:
            advance(5)
        next_stage()
        with bars.task("dqc", 10) as advance:
            advance(4, note="loss 0.25")
    text = out.getvalue()
    for words in ("quantize x, 1 of 2: scores", "quantize x, 2 of 2: dqc", "5/5", "4/10", "loss 0.25", " left"):
        assert words in text
    last = text[text.rindex("quantize x, 2 of 2") :]
    assert "float on Set5" not in last


def test_silence_runs_too() -> None:
    with Silent().run("x", [Stage("a")]) as next_stage, Silent().task("t", 1) as advance:
        advance()
        next_stage()


@pytest.mark.parametrize(
    ("passes", "last_bounds", "names"),
    [
        (["minmax"], 0, ["scores in float", "capture, minmax", "scores quantized"]),
        (
            ["dobi", "dqc"],
            0,
            ["scores in float", "capture, dobi", "scores with bounds", "dqc", "scores quantized"],
        ),
    ],
    ids=["bounds alone", "trained"],
)
def test_the_stages_of_a_run(passes: list[str], last_bounds: int, names: list[str]) -> None:
    assert [stage.name for stage in stages_of(passes, last_bounds)] == names


def test_the_bar_of_tiles_begins_anew_with_smaller_tiles() -> None:
    seen: list[tuple[str, int, int]] = []

    class Seen(Silent):
        @contextmanager
        def task(self, description: str, total: int) -> Iterator[Advance]:
            done = 0

            def advance(steps: int = 1, note: str = "") -> None:
                nonlocal done
                done += steps

            yield advance
            seen.append((description, done, total))

    with TileBar(Seen(), "a.png") as tiles:
        for done, total in ((1, 4), (2, 4), (1, 9), (2, 9), (3, 9)):
            tiles(done, total)
    with TileBar(Seen(), "b.png") as tiles:
        tiles(1, 1)
    assert seen == [("tiles of a.png", 2, 4), ("tiles of a.png", 3, 9)]
