"""Reading weights, and loading them strictly."""

from __future__ import annotations

import pickle
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
