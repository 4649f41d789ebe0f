"""What is found of a network by trying it, what the caller says instead, and what is refused before the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import fxptq
from fxptq import Bits, InputError, Recipe, probe
from fxptq.data.degrade import Degradation
from fxptq.facts import Facts, Overrides, gather_facts
from fxptq.sizes import ANY_SIZE, Sizes
from tests.tiny import inputs, picture, run, settings

DEFAULT = Recipe.load("default")
NETS = """
import torch
from torch import nn

class X2(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.tail = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 8), (8, 12)))
    def forward(self, x):
        y = self.head(x)
        return nn.functional.pixel_shuffle(self.tail(y + torch.relu(self.body(y))), 2)

class Grey(X2):
    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

class Oblong(X2):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.rand(8, 24, 36))
    def forward(self, x):
        return nn.functional.pixel_shuffle(self.tail(torch.relu(self.head(x) + self.position)), 2)

class Stubborn(X2):
    def forward(self, x):
        raise ValueError("no picture will do")
"""


class Net(nn.Module):
    """Three convolutions; `forward` is that of a function of the test."""

    def __init__(self, forward: Callable[[Net, Tensor], Any], channels: int = 3, out: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, out, 3, padding=1)
        self.position = nn.Parameter(torch.rand(8, 24, 40))
        self._forward = forward
        self.eval()

    def plain(self, x: Tensor) -> Tensor:
        y = self.head(x)
        out: Tensor = self.tail(y + torch.relu(self.body(y)))
        return out

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def shuffled(scale: int) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: F.pixel_shuffle(net.plain(x), scale)


def unet(net: Net, x: Tensor) -> Tensor:
    deep = F.interpolate(F.max_pool2d(net.head(x), 8), scale_factor=8.0)
    return net.tail(net.body(net.head(x)) + deep)


def windows(net: Net, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    cut = net.head(x).view(n, 8, h // 12, 12, w // 12, 12)
    return net.tail((cut - cut.mean((3, 5), keepdim=True)).reshape(n, 8, h, w))


def halves(net: Net, x: Tensor) -> Tensor:
    """Loses an odd row in silence."""
    return F.pixel_shuffle(F.pixel_unshuffle(net.plain(x)[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2), 2)


def positions(net: Net, x: Tensor) -> Tensor:
    return net.tail(torch.relu(net.head(x) + net.position))


def transposed(net: Net, x: Tensor) -> Tensor:
    y = net.head(x)
    return net.tail(torch.relu(y + y.transpose(2, 3)))


def reflecting_by(pixels: int) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: net.plain(F.pad(x, (pixels,) * 4, mode="reflect"))[:, :, pixels:-pixels, pixels:-pixels]


reflecting = reflecting_by(7)


def single(net: Net, x: Tensor) -> Tensor:
    return net.plain(x.view(1, 3, x.shape[2], x.shape[3]))


def brightly(net: Net, x: Tensor) -> Tensor:
    return x.clamp(-9, 300) + 5 * torch.tanh(net.plain(x / 255))


def darkly(net: Net, x: Tensor) -> Tensor:
    return (x + 0.02 * torch.tanh(net.plain(x))).clamp(0, 1)


def several(net: Net, x: Tensor) -> dict[str, Any]:
    return {"input": x, "all": [net.plain(x)[:, :3], (F.pixel_shuffle(net.plain(x), 2), net.head(x))]}


FOUND: dict[str, tuple[Net, tuple[int, ...], int, Sizes]] = {
    "x2": (Net(shuffled(2), out=12), (1, 3, 32, 32), 2, ANY_SIZE),
    "grey x3": (Net(shuffled(3), 1, 9), (1, 1, 20, 33), 3, ANY_SIZE),
    "four channels": (Net(Net.plain, 4), (1, 4, 32, 32), 1, ANY_SIZE),
    "halvings": (Net(unet), (1, 3, 32, 40), 1, Sizes(8)),
    "windows of 12": (Net(windows), (1, 3, 36, 24), 1, Sizes(12)),
    "lost rows": (Net(halves), (1, 3, 32, 32), 1, Sizes(2)),
    "one size": (Net(positions), (1, 3, 24, 40), 1, Sizes(fixed=(24, 40))),
    "squares": (Net(transposed), (1, 3, 32, 32), 1, Sizes(square=True)),
    "reflection": (Net(reflecting), (1, 3, 32, 32), 1, Sizes(minimum=8)),
    "reflection of 11": (Net(reflecting_by(11)), (1, 3, 32, 32), 1, Sizes(minimum=12)),
    "reflection of 40": (Net(reflecting_by(40)), (1, 3, 48, 48), 1, Sizes(minimum=41)),
    "one at a time": (Net(single), (1, 3, 32, 32), 1, ANY_SIZE),
    "several outputs": (Net(several, out=12), (1, 3, 32, 32), 2, ANY_SIZE),
}


def facts(model: nn.Module, example: Tensor | None = None, recipe: Recipe = DEFAULT, **said: Any) -> Facts:
    return gather_facts(model, recipe, None if example is None else (example,), Overrides(**said))


@pytest.mark.parametrize("name", FOUND)
def test_scale_and_sizes_are_found_from_an_example(name: str) -> None:
    model, shape, scale, sizes = FOUND[name]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = facts(model, torch.rand(shape))
    assert (found.recipe.scale, found.recipe.input.sizes, found.sizes) == (scale, sizes, sizes)
    assert str(found.recipe.task) == (f"bicubic x{scale}" if scale > 1 else "none")
    assert found.recipe.input.range == 1.0
    assert found.batches == (name != "one at a time")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in FOUND if name not in ("four channels", "one size")])
def test_the_same_is_found_without_an_example(name: str) -> None:
    model, shape, scale, sizes = FOUND[name]
    found = facts(model)
    assert (found.recipe.scale, found.recipe.input.sizes) == (scale, sizes)
    assert found.recipe.input.channels == shape[1]
    assert sizes.takes(*found.recipe.input.size)
    assert "\n" not in found.inferred


@pytest.mark.parametrize("most", range(1, 70))
def test_the_least_number_is_exact(most: int) -> None:
    for least in range(1, most + 1):
        tried: list[int] = []

        def holds(number: int, least: int = least, tried: list[int] = tried) -> bool:
            tried.append(number)
            return number >= least

        assert probe._least(holds, most) == least
        assert len(tried) <= 2 * most.bit_length()
        assert all(1 <= number <= most for number in tried)


def test_a_network_of_one_oblong_size_is_found_at_the_size_that_is_said() -> None:
    model = Net(positions)
    with pytest.raises(InputError, match=r"restores no square picture .* say the height and width of its input"):
        facts(model)
    with pytest.raises(InputError, match=r"restores no picture of 3 or 1 channels and 40x24 pixels \("):
        facts(model, size=(40, 24))
    found = facts(model, size=(24, 40)).recipe
    assert (found.input.sizes, found.input.size) == (Sizes(fixed=(24, 40)), (24, 40))


@pytest.mark.parametrize(
    ("forward", "expected"), [(brightly, 255.0), (darkly, 1.0), (Net.plain, 1.0)], ids=["bright", "dark", "plain"]
)
def test_the_value_range_is_the_one_in_which_pictures_are_restored(
    forward: Callable[[Net, Tensor], Tensor], expected: float
) -> None:
    assert facts(Net(forward)).recipe.input.range == expected
    assert facts(Net(forward), torch.rand(1, 3, 20, 20)).recipe.input.range == expected


def test_an_example_beyond_white_says_the_range() -> None:
    assert facts(Net(Net.plain), 255 * torch.rand(1, 3, 20, 20)).recipe.input.range == 255.0


@pytest.mark.parametrize("name", ["edsr_x4", "swinir_x4", "dncnn_s25", "nafnet_q10"])
def test_trained_networks_are_taken_for_what_they_are(name: str) -> None:
    recipe = Recipe.load(name)
    model = recipe.build_model()
    file = resources.files("fxptq.models.weights") / recipe.weights.bundled
    model.load_state_dict({**model.state_dict(), **load_file(str(file))})
    found = facts(model).recipe
    assert (found.scale, found.input.range, found.input.channels) == (
        recipe.scale,
        recipe.input.range,
        recipe.input.channels,
    )


def test_a_plain_network_has_the_default_recipe() -> None:
    found = facts(Net(Net.plain), torch.rand(1, 3, 32, 32))
    assert found.recipe == DEFAULT
    assert found.inferred == "scale 1, RGB in 0..1, any size"


def test_what_is_said_comes_first() -> None:
    model, x = Net(unet), torch.rand(1, 3, 32, 32)
    found = facts(model, x, value_range=255, multiple=16, degradation="noise:25").recipe
    assert (found.input.range, found.input.sizes, str(found.task)) == (255.0, Sizes(16), "noise sigma 25")
    assert str(facts(model, x, degradation=Degradation("jpeg", quality=40)).recipe.task) == "jpeg quality 40"
    assert facts(Net(several, out=12), x, scale=1).recipe.scale == 1


def test_a_recipe_is_taken_at_its_word_unless_something_is_said() -> None:
    recipe = settings()
    model, x = Net(shuffled(2), out=12), torch.rand(1, 3, 32, 32)
    found = facts(model, x, recipe)
    assert found.recipe is recipe
    assert found.fault.startswith("the network enlarges pictures 2 times, and the scale is said to be 1: say 2")
    assert facts(model, x, recipe, scale=2).recipe.task == Degradation("bicubic", scale=2)
    assert facts(Net(positions), torch.rand(1, 3, 24, 40), recipe).sizes == Sizes(fixed=(24, 40))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"scale": 3}, "the network enlarges pictures 2 times, and the scale is said to be 3: say 2"),
        ({"scale": 0}, "the scale is 0; expected a whole number of 1 or more"),
        ({"multiple": 1.5}, "the multiple is 1.5; expected a whole number"),
        ({"value_range": 128}, "the value range is 128; expected 1 or 255"),
        ({"degradation": "noise:25"}, "the scale is 2 and the degradation noise: a scale above 1 goes with bicubic"),
        ({"degradation": "noise"}, "degradation 'noise': expected bicubic, noise:SIGMA"),
        ({"degradation": "blur:3"}, "degradation 'blur:3': expected bicubic"),
        ({"degradation": "jpeg:4.5"}, "degradation 'jpeg:4.5': '4.5' is no quality"),
        ({"degradation": "jpeg:900"}, "'jpeg' cannot have quality 900"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_the_work(said: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fxptq.quantize(Net(shuffled(2), out=12), inputs(1), 4, **said)
    assert "\n" not in str(caught.value)


SHORT = (
    '{ name = "observe" }, { name = "dobi2d" }, '
    '{ name = "dqc", steps = 3, batch = 4, patch = 31, holdout_crops = 2, eval_every = 2 }'
)


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("calib", ["own", "synthetic"])
def test_training_works_on_every_network(name: str, calib: str, tmp_path: Path) -> None:
    model, shape, _, _ = FOUND[name]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if calib == "synthetic" and shape[1] == 4:
        pytest.skip("pictures have 1 or 3 channels")
    source = [x, x.flip(-1)] if calib == "own" else "synthetic"
    q = fxptq.quantize(model, x, 4, source, settings(SHORT))
    assert len(q.report[-1].series["loss"]) == 3
    q.save(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["one size", "squares", "several outputs"])
def test_the_default_preset_works_and_its_file_restores_any_picture(name: str, tmp_path: Path) -> None:
    model, shape, scale, _ = FOUND[name]
    q = fxptq.quantize(model, torch.rand(shape), 4)
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors", model)
    for height, width in ((9, 70), (50, 31)):
        array = (255 * torch.rand(height, width, 3)).byte().numpy()
        assert fxptq.restore(loaded, array).shape == (scale * height, scale * width, 3)


def test_the_scale_of_several_inputs_is_seen() -> None:
    class Guided(Net):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return F.pixel_shuffle(self.plain(x), 2) * level

    pairs = [(torch.rand(1, 3, 16, 16), torch.rand(1, 1, 1, 1)) for _ in range(2)]
    q = fxptq.quantize(Guided(Net.plain, out=12), pairs[0], "W4A6", pairs, preset="quick")
    assert q.task.task == Degradation("bicubic", scale=2)


def test_what_fails_is_left_to_capture() -> None:
    def failing(net: Net, x: Tensor) -> Tensor:
        raise ValueError("no picture will do")

    with pytest.raises(fxptq.CaptureError, match="the network fails on the example"):
        fxptq.quantize(Net(failing), inputs(1), 4)


@pytest.mark.parametrize("bits", [4, (4, 4), [4, 4], "W4A4", Bits(4, 4)], ids=str)
def test_bits_are_read_however_they_are_written(bits: Any) -> None:
    q = fxptq.quantize(Net(Net.plain), inputs(1), bits, inputs(), settings(), sites={"body": (3, 5), "tail": "float"})
    assert (q.meta.bits_w, q.meta.bits_a) == (4, 4)
    assert {site.name: site.bits for site in q.sites if not site.reason} == {"head": (8, 8), "body": (3, 5)}


@pytest.mark.parametrize("bits", [True, 4.0, (4,), (4, "4"), "float", "4", None, 9, (True, 4)], ids=str)
def test_other_bits_are_one_line(bits: Any) -> None:
    with pytest.raises(InputError, match="bits") as caught:
        fxptq.quantize(Net(Net.plain), inputs(1), bits, inputs(), settings())
    assert "\n" not in str(caught.value)


# -- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a module of networks, and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "facts_nets", raising=False)
    (tmp_path / "facts_nets.py").write_text(NETS)
    picture(tmp_path / "small.png", 21)
    return tmp_path


@pytest.mark.parametrize(("name", "channels", "words"), [("X2", 3, "RGB"), ("Grey", 1, "grey")])
def test_a_network_of_ones_own_goes_all_the_way(name: str, channels: int, words: str, folder: Path) -> None:
    model = ["--model", f"facts_nets:{name}"]
    ran = run("quantize", *model, "--preset", "quick", "--out", "m.safetensors", "--json", "q.json")
    assert (ran.status, ran.err) == (0, "")
    line = f"scale 2 (bicubic x2), {words} in 0..1, any size"
    assert ran.out.splitlines()[0] == f"facts_nets:{name} is taken for: {line}"
    assert json.loads(Path("q.json").read_text())["inferred"] == line
    assert run("evaluate", "m.safetensors", *model, "--json", "e.json").status == 0
    scores = json.loads(Path("q.json").read_text())["eval"]["samples"]["final"]
    assert json.loads(Path("e.json").read_text())["samples"]["psnr_y"] == pytest.approx(scores["psnr_y"], abs=1e-6)
    for integer in ([], ["--integer"]):
        assert run("upscale", "m.safetensors", "small.png", "large.png", "--overwrite", *model, *integer).status == 0
        with Image.open("large.png") as image:
            assert (image.size, len(image.getbands())) == ((42, 42), channels)
    assert run("inspect", *model).status == 0


def test_a_network_of_one_oblong_size_goes_all_the_way(folder: Path) -> None:
    model = ["--model", "facts_nets:Oblong"]
    refused = run("quantize", *model, "--out", "m.safetensors")
    assert refused.status == 2
    assert "(--size)" in refused.line
    ran = run("quantize", *model, "--size", "24x36", "--preset", "quick", "--out", "m.safetensors")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[0].endswith("scale 2 (bicubic x2), RGB in 0..1, 24x36 only")
    assert run("evaluate", "m.safetensors", *model).status == 0
    assert run("upscale", "m.safetensors", "small.png", "large.png", *model, "--integer").status == 0
    with Image.open("large.png") as image:
        assert image.size == (42, 42)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "24"], "--size '24': expected HEIGHTxWIDTH, such as 64x64"),
        (["--scale", 4], "the network enlarges pictures 2 times, and the scale is said to be 4: say 2"),
        (["--degradation", "noise:10"], "the scale is 2 and the degradation noise"),
        (["--range", 2], "the value range is 2.0; expected 1 or 255"),
        (["--recipe", "mine.toml"], "the network enlarges pictures 2 times, and the scale is said to be 1: say 2"),
        (["--multiple", 0], "the multiple is 0; expected a whole number of 1 or more"),
    ],
    ids=str,
)
def test_the_task_is_checked_before_the_work(
    options: list[object], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxptq.commands.quantize.score_sets", pytest.fail)
    Path("mine.toml").write_text('name = "mine"\ntitle = "Mine"\n')
    ran = run("quantize", "--model", "facts_nets:X2", *options, "--out", "m.safetensors")
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(message)
    assert not Path("m.safetensors").exists()


def test_a_recipe_of_ones_own_with_another_scale(folder: Path) -> None:
    Path("mine.toml").write_text('name = "mine"\ntitle = "Mine"\n[input]\nmultiple = 4\n')
    options = ["--recipe", "mine.toml", "--scale", 2, "--preset", "quick", "--out", "m.safetensors"]
    assert run("quantize", "--model", "facts_nets:X2", *options).status == 0
    task = fxptq.load("m.safetensors", import_module("facts_nets").X2()).task
    assert (task.name, task.scale, str(task.task), task.input.sizes) == ("mine", 2, "bicubic x2", Sizes(4))


def test_a_network_that_takes_no_picture_is_one_line(folder: Path) -> None:
    ran = run("quantize", "--model", "facts_nets:Stubborn")
    assert (ran.status, ran.out) == (2, "")
    assert "the network restores no square picture of 3 or 1 channels" in ran.line
    assert "ValueError: no picture will do" in ran.line
