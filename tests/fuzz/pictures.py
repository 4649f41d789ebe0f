"""Pictures of every kind that lie about themselves: chunks with right checksums and wrong content, tags, segments."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin

from fxptq.io.deep import encode_png
from tests.fuzz import hostile


@cache
def originals() -> tuple[bytes, ...]:
    """Small pictures in all formats."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (12, 17, 4)).astype(np.uint8)
    wide = rng.integers(0, 65536, (9, 7, 4)).astype(np.uint16)
    rgb, rgba, grey = Image.fromarray(noise[:, :, :3]), Image.fromarray(noise), Image.fromarray(noise[:, :, 0])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "words " * 100, zip=True)
    files = [
        _saved(rgb, "PNG", icc_profile=b"profile" * 40, exif=exif, pnginfo=text),
        _saved(rgba, "PNG"),
        _saved(grey, "PNG", transparency=7),
        _saved(rgb.convert("P"), "PNG", transparency=3),
        _saved(rgb.convert("1"), "PNG"),
        *(_saved(rgb, "JPEG", exif=exif, progressive=value, icc_profile=b"p" * 200) for value in (False, True)),
        _saved(Image.fromarray(noise).convert("CMYK"), "JPEG"),
        *(_saved(rgb, "TIFF", compression=kind, exif=exif) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate")),
        _saved(Image.fromarray(wide[:, :, 0]), "TIFF"),
        *(_saved(rgb, kind) for kind in ("BMP", "PPM", "GIF", "TGA")),
        *(_saved(rgba, "WEBP", lossless=value) for value in (False, True)),
        encode_png(wide[:, :, :1]),
        encode_png(wide[:, :, :3], wide[:, :, 3], b"profile"),
        encode_png(wide[:, :, :1], wide[:, :, 3]),
        _keyed(encode_png(wide[:, :, :1]), struct.pack(">H", int(wide[0, 0, 0]))),
        _keyed(encode_png(wide[:, :, :3]), wide[0, 0, :3].astype(">u2").tobytes()),
        b"P6 7 9 65535\n" + wide[:, :, :3].astype(">u2").tobytes(),
        b"P3 2 1 255\n1 2 3 4 5 6\n",
    ]
    return tuple(files)


def forged(seed: int) -> bytes:
    """The bytes of a picture's file."""
    rng = np.random.default_rng([seed, 3])
    data = originals()[int(rng.integers(len(originals())))]
    if rng.random() < 0.5:
        if data.startswith(b"\x89PNG"):
            return _with_chunks(rng, data)
        if data[:2] in (b"II", b"MM"):
            return _with_tags(rng, data)
        if data[:2] in (b"P6", b"P3"):
            side = (str(hostile.NUMBERS[int(rng.integers(len(hostile.NUMBERS)))]) for _ in range(3))
            return b" ".join([data[:2], *(number.encode() for number in side)]) + b"\n" + data[13:]
    return hostile.damaged(rng, data)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG: kind and content."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, each with its checksum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _keyed(data: bytes, key: bytes) -> bytes:
    head, *rest = chunks_of(data)
    return png_of([head, (b"tRNS", key), *rest])


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def _with_chunks(rng: np.random.Generator, data: bytes) -> bytes:
    chunks = chunks_of(data)
    at = int(rng.integers(len(chunks)))
    match int(rng.integers(0, 7)):
        case 0:
            side = [int(rng.choice([0, 1, 5, 17, 5000, 60000, 2**31 - 1])) for _ in range(2)]
            depth, kind = int(rng.choice([0, 1, 2, 4, 8, 16, 32])), int(rng.integers(0, 8))
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *side, depth, kind, 0, 0, int(rng.integers(0, 3))))
        case 1:
            del chunks[at]
        case 2:
            chunks.insert(at, chunks[int(rng.integers(len(chunks)))])
        case 3:
            name = bytes(rng.choice([b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"PLTE", b"gAMA", b"acTL", b"fdAT"]))
            body = b"a\0\0" + hostile.bomb(rng) if rng.random() < 0.3 else rng.bytes(int(rng.integers(0, 40)))
            chunks.insert(int(rng.integers(1, len(chunks) + 1)), (name, body))
        case 4:
            chunks = [(kind, hostile.bomb(rng) if kind == b"IDAT" else body) for kind, body in chunks]
        case 5:
            rng.shuffle(chunks)  # type: ignore[arg-type]  # a list of pairs
            chunks = [(bytes(kind), bytes(body)) for kind, body in chunks]
        case _:
            chunks[at] = (chunks[at][0], hostile.damaged(rng, chunks[at][1]))
    return png_of(chunks)


def _with_tags(rng: np.random.Generator, data: bytes) -> bytes:
    found = bytearray(data)
    at = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[at : at + 2], "little")
    for _ in range(int(rng.integers(1, 4))):
        entry = at + 2 + 12 * int(rng.integers(max(1, count)))
        field, length = ((0, 2), (2, 2), (4, 4), (8, 4))[int(rng.integers(4))]
        number = int(rng.choice([0, 1, 2, 3, 5, 16, 255, 256, 65535, 2**31, 2**32 - 1]))
        found[entry + field : entry + field + length] = (number % (1 << 8 * length)).to_bytes(length, "little")
    return bytes(found)
