"""The checkpoint: what is written is read, byte for byte, and nothing else is believed."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxptq.checkpoint import file as ck
from fxptq.checkpoint import index as indexes
from fxptq.checkpoint.file import Checkpoint, FloatSite, Metadata, PackedCodes, PassRecord
from fxptq.checkpoint.metadata import FORMAT_VERSION
from fxptq.checkpoint.state import check_fits
from fxptq.errors import CheckpointError

SWINIR_BLOCKS = 24


def metadata(**changes: object) -> Metadata:
    values: dict[str, object] = {
        "created_by": "fxptq 0.1.0",
        "recipe": "swinir_x4",
        "task": {"scale": 4, "input": {"channels": 3}},
        "bits_w": 3,
        "bits_a": 4,
        "sites": [{"name": "a.b", "kind": "linear"}],
        "float_sites": [FloatSite(name="conv_first", reason="protected by the recipe")],
        "example_shape": [1, 3, 64, 64],
        "seed": 0,
        "calibration": "synthetic",
        "passes": [PassRecord(name="dobi", settings={"candidates": 100}, report={"error": 0.25})],
        "versions": {"torch": "2.13.0"},
        "source_sha256": "0" * 64,
    }
    return Metadata.model_validate(values | changes)


@pytest.fixture
def sample() -> Checkpoint:
    g = torch.Generator().manual_seed(3)
    packed = torch.randint(0, 256, (9,), dtype=torch.uint8, generator=g)
    return Checkpoint(
        meta=metadata(),
        codes={"z.weight": PackedCodes(packed, 3, (4, 6)), "a.weight": PackedCodes(packed[:4], 8, (2, 2))},
        bounds={
            "z.weight": (torch.randn(3, generator=g), torch.rand(3, generator=g)),
            "z.input": (torch.tensor([-1.0]), torch.tensor([2.0])),
        },
        floats={
            "norm.weight": torch.randn(4, 5, generator=g).t(),
            "index": torch.arange(6).reshape(2, 3),
            "scalar": torch.tensor(1.5),
            "half": torch.randn(3, generator=g).to(torch.bfloat16),
            "mask": torch.tensor([True, False]),
            "empty": torch.zeros(0, 2),
        },
    )


@pytest.fixture
def stored(sample: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    ck.write(path, sample)
    return path


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    assert a.meta == b.meta
    assert list(a.codes) == list(b.codes)
    assert list(a.bounds) == list(b.bounds)
    assert list(a.floats) == list(b.floats)
    for name, codes in a.codes.items():
        assert (codes.bits, codes.shape) == (b.codes[name].bits, b.codes[name].shape)
        assert torch.equal(codes.packed, b.codes[name].packed)
    for key, pair in a.bounds.items():
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(pair, b.bounds[key], strict=True))
    for name, tensor in a.floats.items():
        assert tensor.dtype == b.floats[name].dtype
        assert torch.equal(tensor, b.floats[name])


def test_round_trip(sample: Checkpoint, stored: Path) -> None:
    assert_equal(ck.read(stored), sample)


def test_round_trip_of_nothing(tmp_path: Path) -> None:
    nothing = Checkpoint(metadata(sites=[], recipe=None), {}, {}, {})
    ck.write(tmp_path / "m", nothing)
    assert_equal(ck.read(tmp_path / "m"), nothing)


def test_equal_checkpoints_are_equal_files(sample: Checkpoint, stored: Path, tmp_path: Path) -> None:
    ck.write(tmp_path / "again", sample)
    ck.write(tmp_path / "read", ck.read(stored))
    assert (tmp_path / "again").read_bytes() == stored.read_bytes() == (tmp_path / "read").read_bytes()


def test_sizes_account_for_every_byte(stored: Path) -> None:
    sizes = ck.byte_counts(stored)
    assert sizes.codes == 9 + 4
    assert sizes.bounds == 4 * 2 * 4
    assert sizes.floats == 20 * 4 + 6 * 8 + 4 + 3 * 2 + 2
    assert sizes.total == stored.stat().st_size


def test_writing_makes_folders_and_leaves_nothing_beside(sample: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "m.safetensors"
    ck.write(path, sample)
    ck.write(path, sample)
    assert [entry.name for entry in path.parent.iterdir()] == ["m.safetensors"]


def test_failed_write_keeps_the_old_file(stored: Path, sample: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stored.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: cannot be written: No space left"):
        ck.write(stored, sample)
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_infinite_number_in_a_report_is_refused(sample: Checkpoint, tmp_path: Path) -> None:
    meta = metadata(passes=[PassRecord(name="dqc", report={"loss": float("inf")})])
    with pytest.raises(CheckpointError, match="not finite"):
        ck.write(tmp_path / "m", Checkpoint(meta, sample.codes, sample.bounds, sample.floats))
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_an_error(stored: Path, tmp_path: Path) -> None:
    data = stored.read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, len(data) - 1, 13), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=f"{cut}: "):
            ck.read(cut)


def test_every_flipped_byte_is_an_error(stored: Path, tmp_path: Path) -> None:
    data = stored.read_bytes()
    bad = tmp_path / "bad"
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        bad.write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"{bad}: ") as caught:
            ck.read(bad)
        assert "\n" not in str(caught.value)


def test_newer_format_is_named(sample: Checkpoint, tmp_path: Path) -> None:
    newer = Checkpoint(metadata(format_version=FORMAT_VERSION + 1), sample.codes, sample.bounds, sample.floats)
    ck.write(tmp_path / "m", newer)
    with pytest.raises(CheckpointError, match=f"format {FORMAT_VERSION + 1} is newer"):
        ck.read(tmp_path / "m")


def test_other_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no fxptq checkpoint"):
        ck.read(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x00" * 64], ids=["empty", "png", "zeros"])
def test_other_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError, match="f: truncated, damaged or no safetensors file"):
        ck.read(tmp_path / "f")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: cannot be read: No such file"):
        ck.read(tmp_path / "missing")


def test_index_that_does_not_fit_is_an_error(sample: Checkpoint, tmp_path: Path) -> None:
    """A file whose digest is right and whose index lies: the shape claims more codes than there are."""
    wrong = {"z.weight": PackedCodes(torch.zeros(9, dtype=torch.uint8), 3, (4, 7))}
    ck.write(tmp_path / "m", Checkpoint(sample.meta, wrong, sample.bounds, sample.floats))
    with pytest.raises(CheckpointError, match="index does not fit"):
        ck.read(tmp_path / "m")


def test_header_names_no_path_and_no_time(stored: Path) -> None:
    data = stored.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(json.loads(header["__metadata__"]["fxptq"])) == {"format", "sha256"}


def test_overhead_of_a_light_swinir_is_small(tmp_path: Path) -> None:
    """Names and site table of SwinIR-light as it is captured: all that is not codes, bounds or floats."""
    codes: dict[str, PackedCodes] = {}
    bounds: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    floats: dict[str, torch.Tensor] = {}
    sites: list[dict[str, object]] = []
    one = torch.ones(1)
    for index in range(SWINIR_BLOCKS):
        block = f"layers.{index // 6}.residual_group.blocks.{index % 6}"
        for linear, shape in {
            "attn.qkv": (180, 60),
            "attn.proj": (60, 60),
            "mlp.fc1": (120, 60),
            "mlp.fc2": (60, 120),
        }.items():
            name = f"{block}.{linear}"
            codes[f"{name}.weight"] = PackedCodes(torch.zeros(shape[0] * shape[1] // 2, dtype=torch.uint8), 4, shape)
            bounds[f"{name}.input"] = bounds[f"{name}.weight"] = (one, one)
            floats[f"{name}.bias"] = torch.zeros(shape[0])
            sites.append(site(name, "linear", ("input", "weight")))
        for matmul in ("attn.matmul_0", "attn.matmul_1"):
            bounds[f"{block}.{matmul}.lhs"] = bounds[f"{block}.{matmul}.rhs"] = (one, one)
            sites.append(site(f"{block}.{matmul}", "matmul", ("lhs", "rhs")))
        for norm in ("norm1", "norm2"):
            floats[f"{block}.{norm}.weight"] = floats[f"{block}.{norm}.bias"] = torch.ones(60)
        floats[f"{block}.attn.relative_position_bias_table"] = torch.ones(225, 6)
    ck.write(tmp_path / "m", Checkpoint(metadata(sites=sites), codes, bounds, floats))
    sizes = ck.byte_counts(tmp_path / "m")
    assert sizes.bounds == 2 * 4 * len(bounds)
    assert sizes.metadata + sizes.header < 10_000


def site(name: str, kind: str, slots: tuple[str, str]) -> dict[str, object]:
    operands = [
        {
            "slot": slot,
            "quantizer": f"{name}.{slot}",
            "bits": 4,
            "codes": f"model.{name}.weight" if slot == "weight" else "",
        }
        for slot in slots
    ]
    return {"name": name, "kind": kind, "operands": operands}


def test_a_run_of_masks_is_deflated_and_comes_back(tmp_path: Path) -> None:
    masks = torch.zeros(64, 64, 64, dtype=torch.float16)
    masks[::3, :, 32:] = -100
    index = torch.arange(64)[:, None] - torch.arange(64)
    kept = {"attn_mask": masks, "weight": torch.randn(1000), **{f"index_{i}": index.clone() for i in range(8)}}
    ck.write(tmp_path / "m", Checkpoint(metadata(), {}, {}, kept))
    assert ck.byte_counts(tmp_path / "m").floats < 4000 + 20_000
    back = ck.read(tmp_path / "m").floats
    assert list(back) == list(kept)
    for name, tensor in kept.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype is tensor.dtype


# -- files beyond memory -----------------------------------------------------------------------------------------------


def sparse(path: Path, sample: Checkpoint, *, shape: list[int], bits: int = 32, cut: int = 0) -> None:
    """Writes a checkpoint with one more tensor of float32, whose values are a hole in the file."""
    ck.write(path, sample)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    runs = {name: body[slice(*entry["data_offsets"])] for name, entry in header.items() if name != "__metadata__"}
    index = indexes.decode(runs["metadata"])
    index.floats["hole"] = (f"float{bits}", shape)
    runs["metadata"] = indexes.encode(index, index.model_dump_json())
    offset, lengths = 0, {name: len(run) for name, run in runs.items()}
    lengths["floats.float32"] += prod(shape) * 4
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset, offset := offset + lengths[name]]
            entry["shape"] = [lengths[name] // {"U8": 1, "BOOL": 1, "BF16": 2, "F32": 4, "I64": 8}[entry["dtype"]]]
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, run in runs.items():
            stream.seek(8 + len(text) + header[name]["data_offsets"][0])
            stream.write(run)
        stream.truncate(8 + len(text) + offset - cut)


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ck, "_load", lambda _: pytest.fail("the file is read whole"))


@pytest.mark.usefixtures("no_reading")
def test_of_a_file_of_terabytes_only_the_index_is_read(tmp_path: Path, sample: Checkpoint) -> None:
    path = tmp_path / "a.safetensors"
    sparse(path, sample, shape=[1 << 20, 1 << 20])
    assert path.stat().st_size > 4 << 40
    stored = ck.open_file(path)
    assert stored.index.floats["hole"] == ("float32", [1 << 20, 1 << 20])
    with pytest.raises(CheckpointError, match=r"another architecture: .* this network lacks empty, half, hole"):
        check_fits(torch.nn.Conv2d(3, 3, 1), stored.index, "a")


def test_values_beside_those_of_the_network_are_bounded_by_it() -> None:
    network = torch.nn.Conv2d(3, 3, 1)
    floats = {"weight": ("float32", [3, 3, 1, 1]), "bias": ("float32", [3]), ".scheme.step": ("float32", [1 << 24])}
    check_fits(network, indexes.Index(meta=metadata(), codes={}, bounds={}, floats=floats), "a")
    floats[".scheme.more"] = ("float32", [1])
    with pytest.raises(CheckpointError, match=r"it claims 16777217 values beside the 12 of the network"):
        check_fits(network, indexes.Index(meta=metadata(), codes={}, bounds={}, floats=floats), "a")


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize("cut", [1, -1, 1 << 30])
def test_a_large_file_of_another_length_than_its_header_says(tmp_path: Path, sample: Checkpoint, cut: int) -> None:
    sparse(tmp_path / "a", sample, shape=[1 << 30], cut=cut)
    with pytest.raises(CheckpointError, match="its header does not fit its size"):
        ck.open_file(tmp_path / "a")


@pytest.mark.usefixtures("no_reading")
def test_a_large_file_whose_index_claims_less_than_it_has(tmp_path: Path, sample: Checkpoint) -> None:
    sparse(tmp_path / "a", sample, shape=[1 << 30], bits=16)
    with pytest.raises(CheckpointError, match=r"its tensors are not those its index names"):
        ck.open_file(tmp_path / "a")


def test_a_large_file_is_read_when_its_index_fits(
    tmp_path: Path, sample: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    ck.write(tmp_path / "a", sample)
    whole = ck.open_file(tmp_path / "a")
    monkeypatch.setattr(ck, "_AT_ONCE", 10)
    stored = ck.open_file(tmp_path / "a")
    assert (stored.runs, stored.index, stored.size) == (None, whole.index, whole.size)
    assert_equal(stored.content(), sample)
    data = bytearray((tmp_path / "a").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        ck.open_file(tmp_path / "a").content()
