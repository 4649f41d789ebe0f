"""Finding weights, and downloading them from a server on this machine that misbehaves in every way it can."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fxptq.errors import FxptqError, InputError
from fxptq.io import download as downloads
from fxptq.io.download import Patience, download
from fxptq.io.weights import WeightsSource, cache_folder, fetch, known_weights, locate

CONTENT = bytes(range(256)) * 1200  # 300 kB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(stall=0.4, retries=2, pause=0.01)  # for servers that stall
SURE = Patience(stall=20, retries=2, pause=0.01)  # for all others, so that a busy machine is no stall


class Server:
    """Serves CONTENT; `script` holds what to do at each request in turn, the last for all that follow.

    whole: as asked, ranges too.  no ranges: always all of it.  cut: half of what was asked, then close.
    stall: half of what was asked, then silence.  silent: no answer at all.  other: another file.
    shifted: a range other than the one asked for.  nothing: an empty body.  A number: that status.
    """

    def __init__(self, *script: str) -> None:
        self.script = list(script)
        self.ranges: list[str | None] = []
        self.validators: list[str | None] = []
        self.tag: str | None = '"v1"'
        self._done = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/weights.pth"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        kind = self.script[min(len(self.ranges), len(self.script) - 1)]
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        self.validators.append(request.headers.get("If-Range"))
        if kind == "silent":
            self._done.wait(5)
            return
        if kind.isdecimal():
            request.send_error(int(kind))
            return
        content = CONTENT[::-1] if kind == "other" else b"" if kind == "nothing" else CONTENT
        start = 0
        if asked and kind not in {"no ranges", "other", "nothing"}:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            start -= 7 if kind == "shifted" else 0
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        body = content[start:]
        request.send_header("Content-Length", str(len(body)))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        if kind in {"cut", "stall"}:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            if kind == "stall":
                self._done.wait(5)
            return
        request.wfile.write(body)

    def stop(self) -> None:
        self._done.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("no_proxy", "*")
    servers: list[Server] = []

    def start(*script: str) -> Server:
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache/fxptq/weights.pth"


def _left(target: Path) -> list[str]:
    return sorted(file.name for file in target.parent.iterdir())


@pytest.mark.parametrize("sha256", [SHA256, SHA256.upper(), SHA256[:8]], ids=["whole", "upper case", "first digits"])
def test_a_file_is_fetched_and_verified(serve: Callable[..., Server], target: Path, sha256: str) -> None:
    calls: list[tuple[int, int]] = []
    result = download(serve("whole").url, sha256, target, lambda done, total: calls.append((done, total)), SURE)
    assert target.read_bytes() == CONTENT
    assert (result.path, result.bytes, result.sha256, result.published) == (target, len(CONTENT), SHA256, sha256)
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert _left(target) == ["weights.pth"]


def test_without_a_checksum_the_result_says_so(serve: Callable[..., Server], target: Path) -> None:
    result = download(serve("whole").url, "", target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert f"sha256 {SHA256} (not verified" in str(result)


MANY = (
    "import sys; from pathlib import Path; from fxptq.io.download import download; "
    "print(download(sys.argv[1], sys.argv[2], Path(sys.argv[3])).sha256)"
)


@pytest.mark.parametrize("script", [("whole",), ("cut", "cut", "whole")], ids=["whole", "cut"])
def test_many_processes_get_the_file_and_one_fetches_it(
    serve: Callable[..., Server], target: Path, script: tuple[str, ...]
) -> None:
    server = serve(*script)
    command = [sys.executable, "-c", MANY, server.url, SHA256, str(target)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603  # ourselves
        for _ in range(6)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{SHA256}\n"] * 6
    assert target.read_bytes() == CONTENT
    assert _left(target) == ["weights.pth"]
    assert len(server.ranges) == len(script)


@pytest.mark.parametrize("trouble", ["cut", "stall"])
@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "no checksum"])
def test_a_broken_connection_is_resumed(serve: Callable[..., Server], target: Path, trouble: str, sha256: str) -> None:
    server = serve(trouble, trouble, "whole")
    download(server.url, sha256, target, patience=QUICK if trouble == "stall" else SURE)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=153600-", "bytes=230400-"]
    assert server.validators == [None, '"v1"', '"v1"']


def test_a_server_that_gets_on_is_given_any_number_of_attempts(serve: Callable[..., Server], target: Path) -> None:
    server = serve(*["cut"] * 8, "whole")
    download(server.url, SHA256, target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 9


def test_a_server_without_ranges_is_read_from_the_start(serve: Callable[..., Server], target: Path) -> None:
    server = serve("cut", "no ranges")
    download(server.url, SHA256, target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=153600-"]


def test_nothing_is_resumed_that_nothing_could_tell_apart(serve: Callable[..., Server], target: Path) -> None:
    server = serve("cut", "whole")
    server.tag = None
    download(server.url, "", target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_another_range_than_asked_for_is_not_taken(serve: Callable[..., Server], target: Path) -> None:
    server = serve("cut", "shifted", "whole")
    download(server.url, SHA256, target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=153600-", None]


@pytest.mark.parametrize(
    ("left", "ranges"),
    [
        (CONTENT[:1000], ["bytes=1000-"]),
        (CONTENT, [f"bytes={len(CONTENT)}-"]),
        (b"x" * 1000, ["bytes=1000-", None]),
        (CONTENT + b"x", [f"bytes={len(CONTENT) + 1}-", None]),
    ],
    ids=["beginning", "all of it", "of another file", "too long"],
)
def test_what_an_earlier_run_left_is_used_if_it_fits(
    serve: Callable[..., Server], target: Path, left: bytes, ranges: list[str | None]
) -> None:
    target.parent.mkdir(parents=True)
    target.with_name("weights.pth.part").write_bytes(left)
    server = serve("whole")
    download(server.url, SHA256, target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ranges
    assert _left(target) == ["weights.pth"]


def test_what_an_earlier_run_left_is_not_trusted_without_a_checksum(serve: Callable[..., Server], target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.with_name("weights.pth.part").write_bytes(b"x" * 1000)
    server = serve("whole")
    download(server.url, "", target, patience=SURE)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_wrong_file_is_refused_and_the_old_one_kept(serve: Callable[..., Server], target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"old")
    wrong = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(FxptqError, match=rf"is not the published file: its sha256 is {wrong}, expected {SHA256}"):
        download(serve("other").url, SHA256, target, patience=SURE)
    assert target.read_bytes() == b"old"
    assert _left(target) == ["weights.pth"]


def test_a_good_file_is_not_fetched_again(serve: Callable[..., Server], target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    server = serve("whole")
    assert download(server.url, SHA256, target, patience=SURE).sha256 == SHA256
    assert server.ranges == []


@pytest.mark.parametrize(
    ("kind", "attempts", "words"),
    [
        ("404", 1, "the server answered 404"),
        ("403", 1, "the server answered 403"),
        ("503", 3, "the server answered 503"),
        ("nothing", 3, "the server sent nothing"),
        ("silent", 3, "the server did not answer"),
    ],
)
def test_giving_up_names_the_url_and_the_place(
    serve: Callable[..., Server], target: Path, kind: str, attempts: int, words: str
) -> None:
    server = serve(kind)
    with pytest.raises(FxptqError, match=words) as caught:
        download(server.url, SHA256, target, patience=QUICK if kind == "silent" else SURE)
    message = str(caught.value)
    assert server.url in message
    assert str(target) in message
    assert "\n" not in message
    assert len(server.ranges) == attempts
    assert not target.exists()


def test_a_stalled_server_does_not_hold_one_up(serve: Callable[..., Server], target: Path) -> None:
    start = time.monotonic()
    with pytest.raises(FxptqError, match="did not answer"):
        download(serve("silent").url, SHA256, target, patience=Patience(stall=0.2, retries=1, pause=0.01))
    assert time.monotonic() - start < 3


def test_what_arrived_before_giving_up_is_kept_for_the_next_run(serve: Callable[..., Server], target: Path) -> None:
    with pytest.raises(FxptqError, match="503"):
        download(serve("cut", "503").url, SHA256, target, patience=SURE)
    assert _left(target) == ["weights.pth.part"]
    server = serve("whole")
    download(server.url, SHA256, target, patience=SURE)
    assert server.ranges == ["bytes=153600-"]
    assert target.read_bytes() == CONTENT


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.pth"
    with pytest.raises(FxptqError, match="cannot be reached") as caught:
        download(url, SHA256, target, patience=SURE)
    assert url in str(caught.value)
    assert str(target) in str(caught.value)


def test_offline_is_found_at_once(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    monkeypatch.setenv("no_proxy", "*")

    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(downloads.time, "sleep", lambda _: pytest.fail("waited for a host that has no address"))
    with pytest.raises(FxptqError, match="Name or service not known"):
        download("https://weights.example/w.pth", SHA256, target)


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://host/w.pth", "w.pth"])
def test_other_kinds_of_url_are_refused(url: str, target: Path) -> None:
    with pytest.raises(InputError, match="https://"):
        download(url, SHA256, target)


def test_a_place_that_cannot_be_written_is_named(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/w\.pth: cannot be written"):
        download(serve("whole").url, SHA256, tmp_path / "file/w.pth", patience=SURE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "fxptq").mkdir()
    return tmp_path / "fxptq"


def test_the_cache_follows_the_standard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fxptq"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path.home() / ".cache/fxptq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/fxptq"


def test_what_was_downloaded_comes_before_what_is_bundled(cache: Path) -> None:
    source = WeightsSource("mine", bundled="__init__.py", url="https://example.org/w.pth", sha256=SHA256, file="w.pth")
    assert locate(source).parts[-2:] == ("weights", "__init__.py")
    (cache / "w.pth").write_bytes(CONTENT)
    assert locate(source) == cache / "w.pth"
    assert [row.state for row in known_weights([source])] == ["cached"]
    (cache / "w.pth").write_bytes(b"another")
    with pytest.raises(InputError, match="is not the published file"):
        locate(source)
    absent = WeightsSource("mine", bundled="no.safetensors", url="https://example.org/w.pth", file="w.pth")
    assert locate(absent) == cache / "w.pth"


def test_absent_weights_are_told_how_to_get(cache: Path) -> None:
    source = WeightsSource("mine", url="https://example.org/w.pth", file="w.pth")
    with pytest.raises(InputError, match=r"download https://example\.org/w\.pth .* --weights FILE") as caught:
        locate(source)
    assert str(cache / "w.pth") in str(caught.value)


@pytest.mark.parametrize(
    ("bundled", "words"), [("no.safetensors", "no.safetensors is not in the installed"), ("", "its recipe names none")]
)
def test_weights_from_nowhere(cache: Path, bundled: str, words: str) -> None:
    with pytest.raises(InputError, match=f"no weights for mine: {words}.* --weights FILE"):
        locate(WeightsSource("mine", bundled=bundled))
    with pytest.raises(InputError, match="names no URL"):
        fetch(WeightsSource("mine", bundled=bundled))


def test_a_damaged_file_in_the_cache_is_refused(cache: Path) -> None:
    (cache / "w.pth").write_bytes(CONTENT[:-1])
    source = WeightsSource("mine", url="https://example.org/w.pth", sha256=SHA256, file="w.pth")
    with pytest.raises(InputError, match=rf"w\.pth: is not the published file: .* expected {SHA256}"):
        locate(source)
    (cache / "w.pth").write_bytes(CONTENT)
    assert locate(source) == cache / "w.pth"


def test_the_table_of_known_weights(cache: Path) -> None:
    url = "https://example.org/"
    (cache / "good").write_bytes(CONTENT)
    (cache / "bad").write_bytes(b"other")
    rows = known_weights(
        [
            WeightsSource("bundled", bundled="__init__.py"),
            WeightsSource("good", url=url, sha256=SHA256[:8], file="good"),
            WeightsSource("bad", url=url, sha256=SHA256, file="bad"),
            WeightsSource("unchecked", url=url, file="good"),
            WeightsSource("absent", url=url, sha256=SHA256, file="absent"),
            WeightsSource("nowhere"),
        ]
    )
    assert [(row.name, row.state, row.checksum) for row in rows] == [
        ("bundled", "bundled", "unknown"),
        ("good", "cached", "ok"),
        ("bad", "cached", "bad"),
        ("unchecked", "cached", "unknown"),
        ("absent", "absent", "unknown"),
        ("nowhere", "absent", "unknown"),
    ]
    assert rows[1].bytes == len(CONTENT)
    assert rows[4].path == cache / "absent"
    assert rows[5].path is None


def test_fetching_fills_the_cache(serve: Callable[..., Server], cache: Path) -> None:
    source = WeightsSource("mine", url=serve("whole").url, sha256=SHA256, file="w.pth")
    assert fetch(source).path == locate(source) == cache / "w.pth"
