"""Finding, building and running passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass
from importlib.metadata import EntryPoint
from io import StringIO
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from fxptq import passes
from fxptq.errors import InputError
from fxptq.passes import base
from fxptq.passes.base import Context, Pass, PassReport, build_pass, get_pass, pass_names, register, run_passes
from fxptq.progress import Advance, RichProgress


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PASSES", base._PASSES.apart())


def make_pass(label: str) -> type[Pass]:
    class Made(Pass):
        @dataclass(frozen=True)
        class Settings:
            times: int = 1
            rate: float = 0.5
            pair: tuple[float, float] = (0.9, 0.999)
            loud: bool = False
            limit: float | None = None

            def __post_init__(self) -> None:
                if self.times < 1:
                    raise InputError(f"times must be at least 1, not {self.times}")

        def run(self, ctx: Context) -> PassReport:
            return PassReport(notes=(f"{label} {self.settings.times} {ctx.seed}",))

    return Made


def offer(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    monkeypatch.setattr("fxptq.registry.entry_points", lambda group: [e for e in entries if e.group == group])


def test_the_passes_that_come_with_fxptq_are_known() -> None:
    assert {"observe", "minmax", "percentile", "dobi", "dobi2d"} <= set(pass_names())


def test_unknown_pass_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no pass 'dobbi'; did you mean 'dobi'"):
        get_pass("dobbi")
    with pytest.raises(InputError, match=r"no pass 'xyzzy'; there are .*minmax"):
        get_pass("xyzzy")


def test_a_name_is_given_once() -> None:
    first = register("mine")(make_pass("first"))
    with pytest.raises(InputError, match="two passes named 'mine'"):
        register("mine")(make_pass("second"))
    assert get_pass("mine") is first
    assert register("mine")(first) is first


def test_settings_must_be_a_frozen_dataclass() -> None:
    class Loose(make_pass("loose")):  # type: ignore[misc]
        @dataclass
        class Settings:
            pass

    with pytest.raises(InputError, match="frozen dataclass"):
        register("loose")(Loose)
    assert "loose" not in pass_names()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 3}, "pass 'mine' has no setting 'time'; did you mean 'times'"),
        ({"times": "3"}, "pass 'mine', setting 'times': '3' will not do; .*integer"),
        ({"times": 2.5}, "setting 'times'"),
        ({"times": True}, "setting 'times'"),
        ({"loud": 1}, "setting 'loud'"),
        ({"pair": [0.9]}, "setting 'pair'"),
        ({"times": 0}, "pass 'mine': times must be at least 1, not 0"),
    ],
    ids=["unknown", "text", "fraction", "bool", "number-for-bool", "short-pair", "out-of-range"],
)
def test_bad_settings_name_pass_and_setting(options: dict[str, object], message: str) -> None:
    register("mine")(make_pass("mine"))
    with pytest.raises(InputError, match=message):
        build_pass("mine", options)


def test_settings_take_what_toml_gives_and_keep_the_other_defaults() -> None:
    register("mine")(make_pass("mine"))
    step = build_pass("mine", {"rate": 1, "pair": [0.5, 0.6], "limit": 3})
    assert step.settings == step.Settings(times=1, rate=1.0, pair=(0.5, 0.6), loud=False, limit=3)
    with pytest.raises(FrozenInstanceError):
        step.settings.times = 2


def test_passes_of_other_packages_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("module", (), {"Other": make_pass("other")})
    monkeypatch.setattr(EntryPoint, "load", lambda _: module.Other)  # type: ignore[attr-defined]
    offer(monkeypatch, EntryPoint("other", "package:Other", base._PASSES.group))
    assert "other" in pass_names()
    assert get_pass("other") is module.Other  # type: ignore[attr-defined]
    monkeypatch.setattr(base, "_PASSES", base._PASSES.apart())
    offer(monkeypatch, EntryPoint("dobi", "package:Other", base._PASSES.group))
    with pytest.raises(InputError, match="two passes named 'dobi'"):
        get_pass("dobi")


def test_a_pass_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, EntryPoint("broken", "no_such_package:Pass", base._PASSES.group))
    with pytest.raises(InputError, match="pass 'broken' cannot be loaded from 'no_such_package:Pass'"):
        get_pass("broken")


@pytest.mark.parametrize(
    "failure", [ImportError("gone"), SyntaxError("bad"), RuntimeError("no GPU"), InputError("two")]
)
def test_a_broken_package_stops_only_who_asks_for_its_pass(
    failure: Exception, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(entry: EntryPoint) -> type[Pass]:
        loaded.append(entry.name)
        raise failure

    monkeypatch.setattr(EntryPoint, "load", load)
    offer(monkeypatch, EntryPoint("a_broken", "broken:Pass", base._PASSES.group))
    reports = run_passes([("minmax", {})], context)
    assert [report.name for report in reports] == ["observe", "minmax"]
    assert loaded == []
    assert "a_broken" in pass_names()
    with pytest.raises(InputError, match=f"{failure}"):
        get_pass("a_broken")

    class Needy(make_pass("needy")):  # type: ignore[misc]
        needs: ClassVar[frozenset[str]] = frozenset({"tea leaves"})

    register("needy")(Needy)
    with pytest.raises(InputError, match=f"'tea leaves', which no pass provides .*{failure}"):
        run_passes([("needy", {})], context)


def test_a_pass_of_another_package_gathers_what_none_of_ours_does(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brew(make_pass("brew")):  # type: ignore[misc]
        provides: ClassVar[frozenset[str]] = frozenset({"tea leaves"})

    class Needy(make_pass("needy")):  # type: ignore[misc]
        needs: ClassVar[frozenset[str]] = frozenset({"tea leaves"})

    register("needy")(Needy)
    monkeypatch.setattr(EntryPoint, "load", lambda _: Brew)
    offer(monkeypatch, EntryPoint("brew", "package:Brew", base._PASSES.group))
    assert [report.name for report in run_passes([("needy", {})], context)] == ["brew", "needy"]


def test_adding_a_pass_is_adding_a_file(tmp_path: Path) -> None:
    package = Path(passes.__file__).parent
    files = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert files <= {name.rpartition(".")[2] for name in sys.modules if name.startswith("fxptq.passes.")}
    (tmp_path / "calm.py").write_text(
        "from dataclasses import dataclass\nfrom fxptq.passes.base import Pass, PassReport, register\n"
        "@register('calm')\nclass Calm(Pass):\n    sets_bounds = True\n    @dataclass(frozen=True)\n"
        "    class Settings:\n        pass\n    def run(self, ctx):\n        return PassReport()\n"
    )
    ran = subprocess.run(  # noqa: S603  # our own interpreter
        [
            sys.executable,
            "-c",
            "import importlib.machinery as m\n"
            "find = m.PathFinder.find_spec\n"
            "def extended(name, path=None, target=None):\n"
            "    spec = find(name, path, target)\n"
            f"    if name == 'fxptq.passes': spec.submodule_search_locations.append({str(tmp_path)!r})\n"
            "    return spec\n"
            "m.PathFinder.find_spec = extended\n"
            "from fxptq.passes.base import get_pass\nprint(get_pass('calm').sets_bounds)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout.strip(), ran.stderr) == ("True", "")


def test_passes_say_whether_they_set_bounds() -> None:
    setting = {name for name in base._PASSES.bundled() if get_pass(name).sets_bounds}
    assert setting == {"minmax", "percentile", "dobi", "dobi2d"}


def test_statistics_are_gathered_once_and_before_the_pass_that_needs_them(context: Context) -> None:
    reports = run_passes([("minmax", {}), ("dobi", {"k": 20})], context)
    assert [r.name for r in reports] == ["observe", "minmax", "dobi"]
    assert all(r.seconds > 0 for r in reports)
    reports = run_passes([("observe", {"bins": 64}), ("minmax", {})], context)
    assert [r.name for r in reports] == ["observe", "minmax"]


def test_all_settings_are_checked_before_the_first_pass_runs(context: Context) -> None:
    with pytest.raises(InputError, match="k must be"):
        run_passes([("observe", {}), ("dobi", {"k": 0})], context)
    assert not context.statistics


def test_a_statistic_nobody_provides_is_named(context: Context) -> None:
    class Needy(make_pass("needy")):  # type: ignore[misc]
        needs: ClassVar[frozenset[str]] = frozenset({"tea leaves"})

    register("needy")(Needy)
    with pytest.raises(InputError, match="'needy' needs the statistic 'tea leaves'"):
        run_passes([("needy", {})], context)


def test_passes_report_progress_to_whoever_is_asked(context: Context) -> None:
    class Count:
        def __init__(self) -> None:
            self.seen: dict[str, tuple[int, int]] = {}

        @contextmanager
        def task(self, description: str, total: int) -> Iterator[Advance]:
            done = 0

            def advance(steps: int = 1, note: str = "") -> None:
                nonlocal done
                done += steps

            yield advance
            self.seen[description] = (done, total)

    context.progress = count = Count()
    run_passes([("minmax", {})], context)
    assert count.seen == {"observe": (6, 6), "minmax": (4, 4)}


def test_rich_progress_draws_the_task() -> None:
    out = StringIO()
    with RichProgress(Console(file=out, force_terminal=True, width=120)).task("observe", 2) as advance:
        advance()
        advance(note="half way")
    assert "observe" in out.getvalue()
    assert "2/2" in out.getvalue()
    assert "half way" in out.getvalue()
