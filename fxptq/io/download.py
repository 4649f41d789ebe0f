"""Downloading one file: resumed after a break, timed out when it stalls, verified, and never half there.

Promises: the target appears only when it is whole and, where a checksum is known, right; bytes that arrived are kept in
TARGET.part for the next attempt; of several processes that want the same file one brings it, and the others wait; every
failure is one line with the URL and the target.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fxptq.errors import FxptqError, InputError
from fxptq.io.locks import exclusive

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all or 0 if the server does not say)
Checksum = Literal["ok", "unknown", "bad"]

CHUNK = 1 << 16
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Downloaded:
    """A file that arrived whole.

    Attributes:
        path: where it is.
        bytes: its size.
        sha256: as computed from the file.
        published: what it was found to agree with: the published sha256 or its first digits; "" if none is known.
    """

    path: Path
    bytes: int
    sha256: str
    published: str

    def __str__(self) -> str:
        """One line for people."""
        how = f"as published: {self.published}" if self.published else "not verified: no checksum is published"
        return f"{self.path}: {self.bytes} bytes, sha256 {self.sha256} ({how})"


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        stall: seconds without a byte after which a connection is given up.
        retries: further attempts after one that brought nothing.
        pause: seconds before the first of them; doubled before each that follows.
    """

    stall: float = 30.0
    retries: int = 3
    pause: float = 1.0


def download(
    url: str, sha256: str, target: Path, progress: Progress | None = None, patience: Patience | None = None
) -> Downloaded:
    """Fetch `url` to `target`.

    Args:
        url: http or https.
        sha256: the published digest in hexadecimal, or its first digits; "" if unknown.
        target: where to put it; an existing file is kept if it has that digest and replaced otherwise.
        progress: called as bytes arrive.
        patience: how long to try.

    Raises:
        InputError: the URL is of another kind, or the target cannot be written.
        FxptqError: the server cannot be reached, refuses, or sends another file than the published one.
    """
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{url!r} cannot be downloaded; expected a URL that starts with https:// or http://")
    part = target.with_name(target.name + ".part")
    transfer = _Transfer(url, part, bool(sha256), progress, patience or Patience())
    try:
        if sha256 and target.is_file() and compare(file_digest(target), sha256) == "ok":
            return _arrived(target, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target):
            if sha256 and target.is_file() and compare(file_digest(target), sha256) == "ok":
                return _arrived(target, sha256)  # another process has just brought it
            _bring(transfer, target, sha256)
            return _arrived(target, sha256)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from None
    except _GivenUpError as error:
        raise FxptqError(f"{url}: {error}; download it by other means and put it at {target}") from None


def _bring(transfer: _Transfer, target: Path, sha256: str) -> None:
    """Fetches the file, checks it and puts it in its place."""
    part = transfer.part
    from_earlier = _size(part) > 0
    transfer.run()
    if from_earlier and compare(file_digest(part), sha256) == "bad":
        # What an earlier run left may have been of another file: once more, from the start.
        part.unlink()
        transfer.run()
    digest = file_digest(part)
    if compare(digest, sha256) == "bad":
        part.unlink()
        raise FxptqError(
            f"{transfer.url}: is not the published file: its sha256 is {digest}, expected {sha256}; nothing was kept"
        )
    part.replace(target)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(digest: str, expected: str) -> Checksum:
    """Whether a digest is the expected one, of which only the first digits may be known, or nothing ("")."""
    if not expected:
        return "unknown"
    return "ok" if digest.startswith(expected.lower()) else "bad"


class _BrokenError(Exception):
    """A connection failed; another attempt may go on from there."""


class _GivenUpError(Exception):
    """No further attempt makes sense."""


@dataclass
class _Transfer:
    """Brings the file at `url` into `part`, over as many connections as it takes.

    Attributes:
        verifiable: whether a checksum will tell if bytes of different attempts belong together.
        version: the server's name for the version of the file that `part` holds, "" if it gives none.
    """

    url: str
    part: Path
    verifiable: bool
    progress: Progress | None
    patience: Patience
    version: str = ""

    def run(self) -> None:
        failures = 0
        while True:
            before = _size(self.part)
            try:
                self._attempt()
            except _BrokenError as error:
                failures = 0 if _size(self.part) > before else failures + 1
                if failures > self.patience.retries:
                    raise _GivenUpError(str(error)) from None
                time.sleep(self.patience.pause * 2 ** max(0, failures - 1))
            else:
                return

    def _attempt(self) -> None:
        have = _size(self.part) if self.verifiable or self.version else 0
        response = self._open(have)
        if response is None:
            return
        with response:
            goes_on = response.status == http.client.PARTIAL_CONTENT
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                self.part.unlink()
                raise _BrokenError("the server sent another part of the file than was asked for")
            self.version = _version(response)
            done = have if goes_on else 0
            length = response.headers.get("Content-Length", "")
            total = done + int(length) if length.isdecimal() else 0
            with self.part.open("ab" if goes_on else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    done += len(chunk)
                    if self.progress is not None:
                        self.progress(done, total)
            if done == 0:
                raise _BrokenError("the server sent nothing")
            if done < total:
                raise _BrokenError(f"the connection ended after {done} of {total} bytes")

    def _open(self, have: int) -> http.client.HTTPResponse | None:
        """Ask for the file from byte `have` on; None if that is already all of it."""
        opener = urllib.request.build_opener()
        opener.addheaders = [("User-Agent", "fxptq"), ("Accept-Encoding", "identity")]
        if have:
            opener.addheaders.append(("Range", f"bytes={have}-"))
            if self.version:
                opener.addheaders.append(("If-Range", self.version))
        try:
            response: http.client.HTTPResponse = opener.open(self.url, timeout=self.patience.stall)
        except urllib.error.HTTPError as error:
            error.close()
            if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return None
                self.part.unlink()
                raise _BrokenError("what was there of the file is longer than the file") from None
            raised = _BrokenError if error.code in TRANSIENT else _GivenUpError
            raise raised(f"the server answered {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            # A host without an address or with a bad certificate will be no better in a second.
            hopeless = isinstance(error.reason, socket.gaierror | ssl.SSLError)
            raise (_GivenUpError if hopeless else _BrokenError)(f"cannot be reached: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(f"the server did not answer: {error or type(error).__name__}") from None
        return response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)  # not read(): what came before a stall would be lost
    except TimeoutError:
        raise _BrokenError("the server stopped sending") from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"the connection broke: {error or type(error).__name__}") from None


def _version(response: http.client.HTTPResponse) -> str:
    """What If-Range takes: a strong ETag, or a date."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _arrived(target: Path, sha256: str) -> Downloaded:
    return Downloaded(target, _size(target), file_digest(target), sha256)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
