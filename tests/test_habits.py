"""What people do with networks: their types, modes, wrappers, hooks and names; quantized, saved, loaded and run."""

from __future__ import annotations

import copy
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxptq
from fxptq.errors import CaptureError, InputError
from fxptq.graph import Program
from tests.tiny import settings

T = TypeVar("T")
LOW = fxptq.Bits(8, 8)
TRAINED = settings('{ name = "minmax" }, { name = "dqc", steps = 2, batch = 1, patch = 16, eval_every = 2 }')


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape or (1, 3, 24, 24), dtype=torch.float32, generator=torch.Generator().manual_seed(seed))


def conv(inner: int = 3, outer: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)


class Net(nn.Module):
    """Two convolutions around `step`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head, self.tail = conv(3, 8), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.head(x)))  # type: ignore[no-any-return]


def check(
    make: Callable[[int], nn.Module], folder: Path, x: Tensor | None = None, names: list[str] | None = None
) -> Any:
    """Quantizes, saves, loads into a fresh network and runs as integers; returns the quantized network."""
    x = image() if x is None else x
    model = make(0).eval()
    q = fxptq.quantize(model, x, LOW, [x, x.flip(-1)], settings(edges="low"))
    with torch.no_grad():
        own, y = model(x), q(x)
        assert y.dtype == own.dtype
        assert y.shape == own.shape
        assert (y.float() - own.float()).norm() < 0.1 * own.float().norm()
        path = folder / "m.safetensors"
        q.save(path)
        again = fxptq.load(path, model=make(1).eval())
        larger = torch.cat([x, x], 3)[..., : x.shape[2] + 9, : x.shape[3] + 7].repeat(2, 1, 1, 1)
        for z in (x, larger):
            assert torch.equal(again(z), q(z))
            integers = q.to_integer(compile=False)(z)
            assert integers.dtype == own.dtype
            assert (integers.float() - q(z).float()).norm() <= 0.02 * q(z).float().norm()
    if names is not None:
        assert [site.name for site in q.sites] == names
    return q


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_networks_of_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    class Scaled(Net):
        def __init__(self, seed: int = 0) -> None:
            super().__init__(seed)
            self.register_buffer("scale", torch.full((1, 8, 1, 1), 0.5))
            self.norm = nn.BatchNorm2d(8)
            self.mean = torch.full((1, 3, 1, 1), 0.25, dtype=dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.norm(self.head(x - self.mean)) * self.scale)  # type: ignore[no-any-return]

    model = Scaled().to(dtype)
    before = {name: (tensor.dtype, tensor.clone()) for name, tensor in model.state_dict().items()}
    q = check(lambda seed: Scaled(seed).to(dtype), tmp_path, image().to(dtype))
    assert q(image()).dtype == torch.float32
    fxptq.quantize(model, image().to(dtype), LOW, recipe=TRAINED)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, (_, tensor) in before.items())
    assert model.mean.dtype == dtype


def test_tuples_of_half_precision(tmp_path: Path) -> None:
    class Level(Net):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:  # type: ignore[override]  # two inputs
            return super().forward(x + level)

    inputs = (image().half(), image(1, 1, 1, 1).half())
    q = fxptq.quantize(Level().half(), inputs, LOW, [inputs], settings())
    assert q(*inputs).dtype == torch.float16


def test_a_network_that_insists_on_half_precision_is_refused_in_a_line() -> None:
    class Insists(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.half())

    with pytest.raises(CaptureError, match=r"float16.*model\.float\(\)") as refusal:
        fxptq.quantize(Insists().half(), image().half(), LOW, [image()], settings())
    assert "\n" not in str(refusal.value)


def test_a_part_in_half_precision_stays_so() -> None:
    class Part(Net):
        def __init__(self) -> None:
            super().__init__()
            self.part = conv().half()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.part(x.half()).float())

    model = Part().eval()
    q = fxptq.quantize(model, image(), LOW, [image()], settings())
    assert q(image()).dtype == torch.float32


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("recipe", [settings(), TRAINED], ids=["bounds", "trained"])
def test_default_of_double_precision_changes_nothing(recipe: Any, tmp_path: Path) -> None:
    def saved(name: str) -> bytes:
        model = Net().float().eval()
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
        q = fxptq.quantize(model, image(), LOW, [image()], recipe)
        q.save(tmp_path / name)
        return (tmp_path / name).read_bytes()

    usual = saved("float")
    torch.set_default_dtype(torch.float64)
    try:
        assert saved("double") == usual
        x = torch.rand(1, 3, 17, 20, dtype=torch.float32)
        loaded = fxptq.load(tmp_path / "float", model=Net().float())
        y, integers = loaded(x), loaded.to_integer(compile=False)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(fxptq.load(tmp_path / "double", model=Net())(x), y)
    assert y.dtype == integers.dtype == torch.float32


# -- modes -------------------------------------------------------------------------------------------------------------


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients off": lambda: torch.set_grad_enabled(False),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_calibrated_under_any_mode(mode: Callable[[], Any], tmp_path: Path) -> None:
    usual = fxptq.quantize(Net(), image(), LOW, [image()], TRAINED)
    with mode():
        x = image()
        q = fxptq.quantize(Net(), x, LOW, [x, x * 1][:1], TRAINED)
        assert torch.equal(q(x), usual(image()))
        q.save(tmp_path / "m.safetensors")
        loaded = fxptq.load(tmp_path / "m.safetensors", model=Net(1))
        integers = loaded.to_integer(compile=False)(x)
    assert torch.equal(loaded(image()), usual(image()))
    assert torch.equal(loaded.to_integer(compile=False)(image()), integers)
    torch.set_grad_enabled(True)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Net()
    fxptq.quantize(model, image(), LOW, [image()], TRAINED)
    assert model.head.weight.is_inference()


# -- state -------------------------------------------------------------------------------------------------------------


def test_extra_state(tmp_path: Path) -> None:
    class Extra(Net):
        def get_extra_state(self) -> Any:
            return {"version": 3, "names": ["a"]}

        def set_extra_state(self, state: Any) -> None: ...

    check(Extra, tmp_path)


def drops(_module: Any, state: Any, prefix: str, _local: Any) -> None:
    for key in [key for key in state if key.endswith("scale")]:
        del state[key]


def renames(_module: Any, state: Any, prefix: str, _local: Any) -> None:
    for key in list(state):
        state["ema." + key] = state.pop(key)


def converts(_module: Any, state: Any, prefix: str, _local: Any) -> None:
    for key in list(state):
        state[key] = state[key].detach().numpy()


@pytest.mark.parametrize("hook", [drops, renames, converts])
def test_state_dict_hooks(hook: Callable[..., None], tmp_path: Path) -> None:
    class Hooked(Net):
        def __init__(self, seed: int = 0) -> None:
            super().__init__(seed)
            self.register_buffer("scale", torch.full((1,), 1.0 + 2 * seed))
            self._register_state_dict_hook(hook)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    check(Hooked, tmp_path)


def test_under_autocast_all_is_as_without(tmp_path: Path) -> None:
    """Simulation and integers keep their grids in float32, whatever an autocast around them would make of it."""

    class Sized(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if x.shape[2] < 30 else 0.5)

    model, calib = Sized().eval(), [image(seed=seed) for seed in range(2)]
    plain = fxptq.quantize(model, image(), LOW, calib, settings())
    plain.save(tmp_path / "a.safetensors")
    with torch.autocast("cpu", torch.bfloat16):
        cast = fxptq.quantize(model, image(), LOW, calib, settings())
        loaded = fxptq.load(tmp_path / "a.safetensors", model)
        fast = cast.to_integer(compile=False)
    for x in (image(1, 3, 20, 28, seed=8), image(2, 3, 36, 24, seed=9)):  # the second needs a graph of its own
        with torch.no_grad():
            expected, integers = plain(x), plain.to_integer(compile=False)(x)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(cast(x), expected)
                assert torch.equal(loaded(x), expected)
                assert torch.equal(fast(x), integers)
                assert torch.equal(plain.to_integer(compile=False)(x), integers)
                assert not torch.equal(model(x), expected)


class Lazy(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head, self.norm, self.tail = nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyConv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.norm(self.head(x))))  # type: ignore[no-any-return]


def test_lazy_layers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"head\.weight does not exist yet"):
        fxptq.quantize(Lazy(), image(), LOW, [image()], settings())
    model = Lazy().eval()
    model(image())
    q = fxptq.quantize(model, image(), LOW, [image()], settings())
    q.save(tmp_path / "m.safetensors")
    random, unmade = torch.get_rng_state(), Lazy(1)
    random = torch.get_rng_state()
    assert torch.equal(fxptq.load(tmp_path / "m.safetensors", model=unmade)(image()), q(image()))
    assert torch.equal(torch.get_rng_state(), random)
    assert isinstance(unmade.head, nn.LazyConv2d)


def test_constants_overwritten_after_they_were_read() -> None:
    class Overwrites(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.parts = torch.full((1, 3, 1, 1), 0.5), [torch.ones(3, 1, 1)]
            self.register_buffer("kept", torch.ones(1, 3, 1, 1))
            self.register_buffer("passing", torch.ones(1, 3, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            y = x - self.mean + self.kept * self.passing + self.parts[0]
            self.mean.mul_(3)
            self.parts[0].add_(self.mean[0])
            self.kept.fill_(0.25)
            self.passing += self.kept
            with_view = self.kept.view(-1)
            self.kept[:, 1] = 7
            made = torch.ones(3, 1, 1)
            seen = x * made
            made *= 5
            return (
                super().forward(y * self.mean + self.parts[0] + self.kept) * with_view[1] + seen * made + self.passing
            )

    for _ in range(2):
        model = Overwrites().eval()
        program = Program(copy.deepcopy(model), image())
        for size in ((1, 3, 24, 24), (2, 3, 9, 17)):
            x = image(*size)
            assert torch.equal(program(x), copy.deepcopy(model)(x))
            assert torch.equal(program(x), copy.deepcopy(model)(x))


# -- wrappers ----------------------------------------------------------------------------------------------------------


def compiled(seed: int) -> nn.Module:
    return torch.compile(Net(seed), backend="eager")  # type: ignore[return-value]  # an nn.Module


def compiled_part(seed: int) -> nn.Module:
    model = Net(seed)
    model.head = torch.compile(model.head, backend="eager")  # type: ignore[assignment]  # an nn.Module
    return model


def compiled_in_place(seed: int) -> nn.Module:
    model = Net(seed)
    model.compile(backend="eager")
    model.tail.compile(backend="eager")
    return model


def compiled_forward(seed: int) -> nn.Module:
    class Own(Net):
        @torch.compile(backend="eager")
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    return Own(seed)


def parallel(seed: int) -> nn.Module:
    return nn.DataParallel(Net(seed))


def both(seed: int) -> nn.Module:
    return nn.DataParallel(compiled(seed))


class OfType(Net, Generic[T]):
    """Inherits from typing.Generic."""


class Has(Protocol):
    def forward(self, x: Tensor) -> Tensor: ...


class OfProtocol(Net, Has):
    """Inherits from a protocol."""


class Abstract(Net, ABC):
    @abstractmethod
    def width(self) -> int: ...


class Concrete(Abstract):
    """Inherits from an abstract class."""

    def width(self) -> int:
        return 3


class Listed(Net, typing.Sequence[int]):
    """Inherits from an abstract collection."""

    def __getitem__(self, index: Any) -> Any:
        raise IndexError(index)

    def __len__(self) -> int:
        return 2


MAKERS = [
    compiled, compiled_part, compiled_in_place, compiled_forward, parallel, both, OfType, OfProtocol, Concrete, Listed,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_wrapped(make: Callable[[int], nn.Module], tmp_path: Path) -> None:
    q = check(make, tmp_path, names=["head", "tail"])
    plain = Net(1)
    assert torch.equal(fxptq.load(tmp_path / "m.safetensors", model=plain)(image()), q(image()))
    torch._dynamo.reset()


# -- names -------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Layers of given names, each with a call of the same kinds beside it, and odd tensors."""

    def __init__(self, names: tuple[str, ...], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.names, self.head, self.tail = names, conv(3, 8), conv(8, 3)
        self.kernel, self.matrix = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.2), nn.Parameter(torch.randn(8, 8) * 0.3)
        for name in names:
            layer = conv(8, 8)
            layer.register_parameter("import", nn.Parameter(torch.ones(1)))
            layer.register_buffer('x"y', torch.ones(1))
            layer.register_buffer("a/b", torch.ones(1))
            layer.tensor_0 = torch.ones(1) * 0.5  # type: ignore[assignment]  # a plain attribute
            layer.folded_0 = torch.ones(1) * 0.75  # type: ignore[assignment]  # as above
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for name in self.names:
            layer = getattr(self, name)
            scale = getattr(layer, "import") * getattr(layer, 'x"y') * layer.tensor_0 * getattr(layer, "a/b")
            y = y + torch.relu(layer(y)) * scale * layer.folded_0 * torch.from_numpy(np.full(1, 0.5, np.float32))
            y = F.conv2d(y, self.kernel, padding=1)
            y = F.linear(y.permute(0, 2, 3, 1), self.matrix).permute(0, 3, 1, 2)
        return self.tail(y)  # type: ignore[no-any-return]


NAMES: dict[str, tuple[str, ...]] = {
    "of calls": ("conv2d_0", "linear_0", "conv2d_0@2", "linear_1~"),
    "keywords": ("lambda", "class", "None"),
    "characters": ('a"b', "c'd", "e\\f", "g\nh", "{0}"),
    "code": ("__import__('os')", '");raise SystemExit("', "#"),
    "alike": ("x/y", "x~2f~y", "self", "root"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names(names: tuple[str, ...], tmp_path: Path) -> None:
    q = check(lambda seed: Named(names, seed), tmp_path)
    found = [site.name for site in q.sites]
    assert len(set(found)) == len(found) == 3 * len(names) + 2
    assert set(names) <= set(found)
    assert len(q.program.quantizers) == len(q.program.holder.quantizers._modules)
