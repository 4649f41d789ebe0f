"""What a file is, read off its content: a weights file, or something that people take for one and its name.

Promises: the file's suffix is not looked at, nothing in it is executed, and no more than its first bytes and, of a zip
archive, its table of contents are read.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from fxptq.errors import InputError

Format = Literal["safetensors", "torch"]

_HEAD = 4096
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how every file of torch.save began before it wrote zip archives
_SIGNATURES = {
    b"\x1f\x8b": "gzip: unpack it first",
    b"\xfd7zXZ\0": "xz: unpack it first",
    b"BZh": "bzip2: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "7z: unpack it first",
    b"Rar!": "rar: unpack it first",
    b"\x89HDF": "HDF5, as Keras writes: convert it to PyTorch first",
    b"GGUF": "GGUF, already quantized: give the original weights",
    b"\x93NUMPY": "a single NumPy array",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


def identify(path: Path) -> Format:
    """Which reader takes the file.

    Raises:
        InputError: it is missing, or no weights file; the message calls it by its name.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is a folder, not a file" if path.is_dir() else f"no weights file at {path}")
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        stranger = _zip_archive(path, size)
    elif _TORCH_MAGIC in head[:64]:
        stranger = ""
    else:
        stranger = _stranger(head)
    if stranger:
        raise InputError(refusal(path, f"it is {stranger}"))
    return "torch"


def refusal(path: Path, reason: str) -> str:
    """The line that says that a file is no weights file, and why."""
    return f"{path} is not a weights file that can be read as data alone: {reason}"


def _stranger(head: bytes) -> str:
    rules = (
        *((head.startswith(signature), name) for signature, name in _SIGNATURES.items()),
        (not head, "empty"),
        (not head.strip(b"\0"), "nothing but zeros: the download or the copy broke off"),
        (head[8:9] == b"{", "a safetensors file that is cut off or damaged"),
        (head[257:262] == b"ustar", "a tar archive: unpack it first"),
        (head[4:8] == b"TFL3", "a TensorFlow Lite model: give PyTorch weights"),
        (
            head[:1] == b"\x80" and head[1:2] in {b"\2", b"\3", b"\4", b"\5"},
            "a pickle that torch.save did not write: loading it would run its code",
        ),
        (head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head), "an ONNX model: give PyTorch weights"),
        (True, _text(head) or f"of no known format (its first bytes are {head[:8].hex(' ')})"),
    )
    return next(name for applies, name in rules if applies)


def _text(head: bytes) -> str:
    """Which kind of text it is, "" for none."""
    text = head.decode("utf-8", "replace").strip("\ufeff \t\r\n").lower()
    odd = sum(not (character.isprintable() or character.isspace()) or character == "\ufffd" for character in text)
    if odd > len(text) // 8 + 1:  # a character may be cut at the end, and old pages are not in UTF-8
        return ""
    rules = (
        (text.startswith("version https://git-lfs"), "a Git LFS pointer, not the file: run git lfs pull"),
        ("annex/objects/" in text[:256], "a git-annex pointer, not the file: run git annex get"),
        ("<html" in text[:1024] or text.startswith(("<!doctype html", "<head", "<!--")),
         "a web page: the link leads to a page about the file, or to an error"),
        (text.startswith("<"), "an XML message of a server: the download failed"),
        (text.startswith(("{", "[")), "JSON text, such as the message of a server: the download failed"),
        (True, "text"),
    )  # fmt: skip
    return next(name for applies, name in rules if applies)


def _zip_archive(path: Path, size: int) -> str:
    """What a zip archive is, "" for one that torch.save wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # noqa: BLE001  # whatever a damaged table of contents leads to
        return "a zip archive that is cut off or damaged, as a download that broke off leaves it"
    parts = {entry.filename.partition("/")[2] or entry.filename for entry in entries}
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    rules = (
        ("constants.pkl" in parts or any(part.startswith("code/") for part in parts),
         "a TorchScript archive, a program: save the state_dict() of torch.jit.load(FILE) and give that"),
        (any(part.endswith(("exported_program.json", "archive_format")) for part in parts),
         "a program of torch.export: save the state_dict of torch.export.load(FILE) and give that"),
        (any(part.endswith(".npy") for part in parts), "a NumPy archive"),
        ("data.pkl" not in parts, "a zip archive: unpack it first"),
        (packed, "a torch file that was packed again with compression: load it and save it with torch.save"),
        (sum(entry.file_size for entry in entries) > size, "damaged: its parts claim more bytes than it has"),
        (True, ""),
    )  # fmt: skip
    return next(name for applies, name in rules if applies)
