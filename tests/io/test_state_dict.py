"""Reading weights, and loading them strictly."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fxptq.errors import InputError
from fxptq.io.state_dict import load_state, read_state
from fxptq.models.swinir import SwinIR


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return small().state_dict()


@pytest.mark.parametrize("wrapper", ["", "params", "params_ema", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_torch_files_bare_or_wrapped(tmp_path: Path, state: dict[str, Tensor], wrapper: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save({wrapper: state} if wrapper else state, path)
    model = small()
    load_state(model, read_state(path))
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare network", "network with a module"])
def test_prefix_of_data_parallel(state: dict[str, Tensor], wrapped: bool) -> None:
    model: nn.Module = nn.Sequential()
    model.add_module("module", small())
    model = model if wrapped else small()
    load_state(model, {f"module.{key}": value for key, value in state.items()})
    assert torch.equal(next(model.parameters()), state["0.weight"])


def test_averaged_weights_come_first_and_a_key_decides(tmp_path: Path, state: dict[str, Tensor]) -> None:
    other = {key: t + 1 for key, t in state.items()}
    torch.save({"params": state, "params_ema": other, "iter": 7}, tmp_path / "w.pth")
    assert torch.equal(read_state(tmp_path / "w.pth")["0.bias"], other["0.bias"])
    assert torch.equal(read_state(tmp_path / "w.pth", "params")["0.bias"], state["0.bias"])
    with pytest.raises(InputError, match="no entry 'best'; they start with: iter, params, params_ema"):
        read_state(tmp_path / "w.pth", "best")


def test_half_precision_file_loads_into_single(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({key: t.half() for key, t in state.items()}, path)
    model = small()
    load_state(model, read_state(path))
    assert model[0].weight.dtype is torch.float32
    assert torch.equal(model[0].weight, state["0.weight"].half().float())


def test_differences_are_listed_with_shapes_and_nothing_is_loaded(state: dict[str, Tensor]) -> None:
    model = small()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    given = {**state, "0.weight": torch.zeros(2, 2), "2.weight": torch.zeros(1)}
    del given["1.bias"]
    with pytest.raises(InputError) as caught:
        load_state(model, given)
    message = str(caught.value)
    assert "do not fit Sequential: 0.weight: [2, 2] instead of [3, 2]" in message
    assert "1.bias: nothing instead of [1]" in message
    assert "2.weight: [1] instead of nothing" in message
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_only_the_first_differences_are_listed() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))
    with pytest.raises(InputError, match="and 6 more"):
        load_state(model, {})


def test_derived_buffers_may_be_absent_or_of_another_size() -> None:
    options = {"img_size": 16, "depths": (2,), "num_heads": (1,), "embed_dim": 4, "upscale": 1}
    model = SwinIR(**options)
    full = model.state_dict()
    derived = [key for key in full if "mask" in key or "index" in key]
    assert len(derived) == 3
    load_state(SwinIR(**options), {key: t for key, t in full.items() if key not in derived})
    load_state(SwinIR(**options), full)
    before = {key: model.state_dict()[key].clone() for key in derived}
    other = SwinIR(**{**options, "img_size": 24}).state_dict()
    assert any(other[key].shape != full[key].shape for key in derived)
    load_state(model, other)
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in derived)
    assert all(torch.equal(after[key], other[key]) for key in full if key not in derived)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("never",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "no weights file at .*absent.pth"),
        ("text.pth", b"not weights", "text.pth is not a weights file"),
        ("empty.pt", b"", "empty.pt is not a weights file"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cut.safetensors is not a weights file"),
        ("evil.pth", pickle.dumps(Evil(), protocol=2), "evil.pth is not a weights file that can be read as data alone"),
    ],
)
def test_unreadable_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_state(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_code_in_a_torch_archive_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"params": Evil()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="as data alone"):
        read_state(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [({"0.weight": "text"}, "'0.weight' is a str"), (torch.zeros(3), "holds a Tensor; expected a state dict")],
    ids=["text", "tensor"],
)
def test_file_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        read_state(tmp_path / "w.pth")


# -- weights as people have them -------------------------------------------------------------------------------------


class Learned(nn.Module):
    """A parameter with a buffer's name, a buffer with one, a batch norm, and tied layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.attn_mask = nn.Parameter(torch.randn(4))
        self.register_buffer("relative_index", torch.arange(6))
        self.register_buffer("window_mask", torch.zeros(2, 3))
        self.register_buffer("mean", torch.randn(3))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def loaded_equals(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "generator.", "net_g.", "module._orig_mod.", "model.module.", "a.b.c."],
)
def test_prefixes_are_seen_through(prefix: str) -> None:
    state = Learned(1).state_dict()
    model = Learned()
    others = {"loss.vgg.weight": torch.ones(2), "n_averaged": torch.tensor(3)}
    load_state(model, {**others, **{f"{prefix}{name}": x for name, x in state.items()}})
    assert loaded_equals(model, state)


def test_a_wrapper_in_the_middle_and_a_wrapped_network() -> None:
    state = Learned(1).state_dict()
    model = Learned()
    load_state(model, {name.replace("conv.", "conv._orig_mod."): x for name, x in state.items()})
    assert loaded_equals(model, state)
    wrapped = nn.DataParallel(Learned())
    load_state(wrapped, state)
    assert loaded_equals(wrapped.module, state)


def test_averaged_weights_are_taken_of_two_prefixes() -> None:
    one, two = Learned(1).state_dict(), Learned(2).state_dict()
    model = Learned()
    load_state(model, {f"net.{name}": x for name, x in one.items()} | {f"net_ema.{name}": x for name, x in two.items()})
    assert loaded_equals(model, two)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3},
        lambda state: {"ema": {"module": state}, "model": {name: x + 1 for name, x in state.items()}},
        lambda state: {"network": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"my_network": state, "iteration": 5, "lr_scheduler": {"last": torch.ones(1)}},
        lambda state: {"generator": state, "discriminator": {"weight": torch.ones(1)}},
    ],
    ids=["model", "ema first", "network", "nested", "the only one", "generator"],
)
def test_wrappers_are_seen_through(wrap: Callable[[object], object], state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "w.bin")
    read = read_state(tmp_path / "w.bin")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_of_two_state_dicts_one_must_be_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"one": state, "two": state}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="several state dicts: one, two; name one as `key`"):
        read_state(tmp_path / "w.pth")
    assert read_state(tmp_path / "w.pth", "two").keys() == state.keys()


def test_what_is_derived_may_be_absent_or_of_another_size_and_what_is_learned_may_not() -> None:
    state = Learned(1).state_dict()
    model = Learned()
    derived = {"relative_index": torch.arange(9), "window_mask": torch.zeros(5, 5)}
    surplus = {"blocks.0.attn_mask": torch.tensor([0.0, -100.0]), "position_ids": torch.arange(3)}
    load_state(model, {**state, **derived, **surplus})
    assert torch.equal(model.relative_index, torch.arange(6))
    absent = ("relative_index", "window_mask", "norm.num_batches_tracked", "second.weight")
    again = Learned()
    load_state(again, {name: x for name, x in state.items() if name not in absent})
    assert loaded_equals(again, state)
    for name in ("attn_mask", "mean", "conv.bias", "norm.running_mean"):
        with pytest.raises(InputError, match=rf"{name}: nothing instead of"):
            load_state(Learned(), {key: x for key, x in state.items() if key != name})
    with pytest.raises(InputError, match=r"attn_mask: \[3\] instead of \[4\]"):
        load_state(Learned(), {**state, "attn_mask": torch.zeros(3)})
    with pytest.raises(InputError, match=r"extra_mask: \[3\] instead of nothing"):  # three values are no mask
        load_state(Learned(), {**state, "extra_mask": torch.tensor([0.1, 0.2, 0.3])})


@pytest.mark.parametrize(("value", "words"), [(torch.int8, "of int8"), (torch.complex64, "of complex64")])
def test_another_kind_of_number_is_no_weight(value: torch.dtype, words: str, state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=words):
        load_state(small(), {**state, "0.weight": state["0.weight"].to(value)})


def normed(form: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 2), nn.Linear(4, 3)
    if form == "old":
        layers = tuple(nn.utils.weight_norm(layer) for layer in layers)
    elif form == "new":
        layers = tuple(nn.utils.parametrizations.weight_norm(layer) for layer in layers)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.mul_(1.5)
    return model


@pytest.mark.parametrize("into", ["plain", "old", "new"])
@pytest.mark.parametrize("form", ["plain", "old", "new"])
@pytest.mark.parametrize("prefix", ["", "net."])
def test_weight_normalisation_in_every_form(form: str, into: str, prefix: str) -> None:
    source, model = normed(form, 1), normed(into, 2)
    load_state(model, {f"{prefix}{name}": x for name, x in source.state_dict().items()})
    inputs = torch.rand(1, 3, 5, 5), torch.rand(1, 5, 4, 4), torch.rand(2, 4)
    for one, other, x in zip(source, model, inputs, strict=True):
        torch.testing.assert_close(other(x), one(x))


def test_parts_that_make_no_weight_are_reported(state: dict[str, Tensor]) -> None:
    for parts in ((torch.ones(10), torch.ones(4)), (torch.ones(2, 1), torch.ones(3, 2)), (torch.ones(3).int(),) * 2):
        with pytest.raises(InputError, match=r"0\.weight: nothing instead of \[3, 2\]"):
            load_state(
                small(),
                {"0.weight_g": parts[0], "0.weight_v": parts[1], **{k: x for k, x in state.items() if k != "0.weight"}},
            )


# -- files that are no weights files ---------------------------------------------------------------------------------


def saved(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped(entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(small(), torch.rand(1, 2)), stream)
    return stream.getvalue()


def forged_zip() -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(1 << 16)}))) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


STRANGERS = {
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
    "annex": (lambda: b"/annex/objects/SHA256E-s9--00.pth\n", "git-annex pointer"),
    "page": (lambda: b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "old page": (lambda: "<html><body>nicht verfügbar: größe</body></html>".encode("latin-1"), "a web page"),
    "server": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML message of a server"),
    "json": (lambda: b'{"message": "Not Found"}', "JSON text"),
    "words": (lambda: b"Not Found", "text"),
    "nothing": (lambda: b"", "empty"),
    "zeros": (lambda: bytes(5000), "nothing but zeros"),
    "gzip": (lambda: gzip.compress(b"weights"), "gzip: unpack it first"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(30), "a picture"),
    "numpy": (lambda: zipped({"a.npy": b"\x93NUMPY"}), "a NumPy archive"),
    "zip": (lambda: zipped({"w.pth": b"x"}), "a zip archive: unpack it first"),
    "cut zip": (lambda: saved({"a": torch.zeros(99)})[:-40], "a zip archive that is cut off or damaged"),
    "deflated": (forged_zip, "packed again with compression"),
    "script": (scripted, "a TorchScript archive"),
    "model": (lambda: saved(small()), r"torch\.nn\.modules\.[\w.]+, which is code \(a pickled model"),
    "old model": (lambda: saved(small(), _use_new_zipfile_serialization=False), "which is code"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    "cut": (lambda: saved({"a": torch.zeros(9)}, _use_new_zipfile_serialization=False)[:56], "it is damaged: "),
    "cut safetensors": (lambda: safetensors.torch.save({"a": torch.zeros(9)})[:20], "safetensors file that is cut off"),
    "noise": (lambda: bytes(range(128, 256)) * 9, "of no known format"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_weights_file_is_called_by_its_name(kind: str, suffix: str, tmp_path: Path) -> None:
    make, words = STRANGERS[kind]
    (tmp_path / f"w{suffix}").write_bytes(make())
    with pytest.raises(InputError, match=f"can be read as data alone: it (is|holds) .*{words}|{words}") as caught:
        read_state(tmp_path / f"w{suffix}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w", "w.bin", "w.pth", "w.safetensors", "w.pt.txt"])
@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch"])
def test_the_content_decides_and_not_the_suffix(name: str, form: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    data = {
        "safetensors": lambda: safetensors.torch.save(state),
        "torch": lambda: saved(state),
        "old torch": lambda: saved(state, _use_new_zipfile_serialization=False),
    }[form]()
    (tmp_path / name).write_bytes(data)
    assert read_state(tmp_path / name).keys() == state.keys()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(1).expand(10**12), r"claims the shape \[1000000000000\]"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(10**9, device="meta"), "empty-handed"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_without_values_of_their_own_are_refused(tensor: Tensor, words: str, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=words):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{1: torch.zeros(2)}, {"a": {}}, {"a": None, "b": torch.zeros(1)}, {3: {"a": 1}}])
def test_a_mapping_of_another_shape_is_no_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_state(tmp_path / "w.pth")
