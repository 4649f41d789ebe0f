"""quantize, save, load: what comes back is what was saved, bit for bit, and what cannot be is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxptq
from fxptq import Bits, CaptureError, CheckpointError, InputError, QuantizedModel, Recipe
from fxptq.checkpoint import file as checkpoints
from fxptq.checkpoint.file import Checkpoint, byte_counts
from fxptq.checkpoint.state import to_checkpoint
from fxptq.recipe import PresetTable
from tests.tiny import Medley, edsr, inputs, picture, settings, swinir

FOUR = Bits(4, 4)
DQC = '{ name = "minmax" }, { name = "dqc", steps = 2, batch = 1, patch = 16, holdout_crops = 1, eval_every = 1 }'

LEARNING = DQC.replace("steps = 2", "steps = 4, lr = 2e-3")


class Small(nn.Module):
    """Three convolutions, one of them between the edges."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head, self.body, self.tail = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 8), (8, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(torch.relu(self.body(self.head(x))))


def quantized(
    model: nn.Module, bits: Bits = FOUR, passes: str = '{ name = "minmax" }', **changes: object
) -> QuantizedModel:
    return fxptq.quantize(model, inputs(1), bits, inputs(), settings(passes, **changes))


def assert_comes_back(q: QuantizedModel, fresh: nn.Module, folder: Path) -> QuantizedModel:
    path, again = folder / "one.safetensors", folder / "two.safetensors"
    q.save(path)
    loaded = fxptq.load(path, fresh)
    with torch.no_grad():
        for x in (inputs(1, 16, seed=5), inputs(2, 24, seed=6)):
            assert torch.equal(loaded(x), q(x))
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    return loaded


@pytest.mark.parametrize(("w", "a"), [(2, 8), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6), (8, 7)], ids=str)
def test_every_width_comes_back(w: int, a: int, tmp_path: Path) -> None:
    loaded = assert_comes_back(quantized(Medley(), Bits(w, a), edges="low"), Medley(seed=9), tmp_path)
    assert {operand.bits for site in loaded.sites for operand in site.operands if operand.slot == "weight"} == {w}


@pytest.mark.parametrize(
    ("make", "granularity", "dtype"),
    [
        (Medley, "channel", "fp32"),
        (Medley, "tensor", "fp16"),
        (edsr, "channel", "fp32"),
        (edsr, "tensor", "fp16"),
        (swinir, "channel", "fp16"),
        (swinir, "tensor", "fp32"),
    ],
    ids=["medley-channel", "medley-tensor", "edsr-channel", "edsr-tensor", "swinir-channel", "swinir-tensor"],
)
def test_every_network_comes_back(make: Callable[..., nn.Module], granularity: str, dtype: str, tmp_path: Path) -> None:
    q = quantized(make(), weight_granularity=granularity, float_dtype=dtype, connective="low")
    assert_comes_back(q, make(seed=9), tmp_path)


def test_trained_bounds_come_back(tmp_path: Path) -> None:
    assert_comes_back(quantized(swinir(), passes=DQC), swinir(seed=9), tmp_path)


def test_quantized_output_differs_from_the_network_and_is_close() -> None:
    model, x = edsr(), inputs(1)
    with torch.no_grad():
        apart = [float((quantized(model, Bits(b, b), edges="low")(x) - model(x)).abs().mean()) for b in (2, 8)]
    assert 0 < apart[1] < apart[0] / 20


def test_constant_channels_are_exact(tmp_path: Path) -> None:
    loaded = assert_comes_back(
        quantized(Medley(), Bits(2, 8), edges="low", float_dtype="fp32"), Medley(seed=9), tmp_path
    )
    grouped = loaded.program.weight_of("grouped.weight")
    up = loaded.program.weight_of("up.weight")
    assert grouped is not None
    assert up is not None
    assert torch.equal(grouped[2], torch.full_like(grouped[2], 0.3))
    assert torch.equal(grouped[3], torch.zeros_like(grouped[3]))
    assert torch.equal(up[:, 1], torch.full_like(up[:, 1], -0.7))


def test_floats_that_half_precision_cannot_hold_are_kept() -> None:
    model = Medley()
    q = quantized(model)
    assert torch.equal(q.program.holder.model.norm.running_var, model.norm.running_var)
    stored = {name: x.dtype for name, x in _content(q).floats.items()}
    assert stored["norm.running_var"] is torch.float32
    assert stored["norm.weight"] is torch.float16


def test_shared_weight_is_stored_once(tmp_path: Path) -> None:
    q = quantized(Medley())
    content = _content(q)
    tensors = [*content.codes, *(name for name in content.floats if not name.startswith("."))]  # a dot begins bounds
    assert sum("first.weight" in name or "second.weight" in name for name in tensors) == 1
    assert any("first.weight" in name for name in content.codes)


def test_shared_weight_of_two_widths_stays_in_float_and_is_right(tmp_path: Path) -> None:
    q = fxptq.quantize(
        Medley(), inputs(1), Bits(3, 8), inputs(), settings(), sites={"first": Bits(2, 8), "second": Bits(5, 8)}
    )
    weight, keys = Medley().first.weight.detach().half().float(), ("first.weight", "second.weight")
    seen = [q.program.quantizers[key](q.program.weight_of(key)) for key in keys]
    for found, key in zip(seen, keys, strict=True):
        assert torch.equal(found, q.program.quantizers[key](weight))
    assert not torch.equal(*seen)
    assert "first.weight" in _content(q).floats
    assert_comes_back(q, Medley(seed=9), tmp_path)


def _normed(how: str, seed: int = 0) -> nn.Module:
    """`Small` whose layer between the edges has a computed weight."""
    model, utils = Small(seed), nn.utils
    tools: dict[str, Callable[[nn.Module], nn.Module]] = {
        "weight norm": utils.parametrizations.weight_norm,
        "spectral norm": utils.parametrizations.spectral_norm,
        "hook of weight norm": utils.weight_norm,
        "hook of spectral norm": utils.spectral_norm,
        "two": lambda layer: utils.parametrizations.spectral_norm(utils.parametrizations.weight_norm(layer)),
        "bias": lambda layer: utils.parametrizations.weight_norm(layer, "bias", dim=None),
    }
    tools[how](model.body)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "how", ["weight norm", "spectral norm", "hook of weight norm", "hook of spectral norm", "two", "bias"]
)
def test_computed_weights_are_stored_without_what_they_are_made_of(how: str, tmp_path: Path) -> None:
    model, x = _normed(how), inputs(1, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    q = quantized(model, Bits(8, 8))
    assert_comes_back(q, _normed(how, seed=9), tmp_path)
    assert set(_content(q).codes) == {f"model.{layer}.weight" for layer in ("head", "body", "tail")}
    floats = {name for name in _content(q).floats if not name.startswith(".")}  # a dot begins the names of bounds
    assert floats == {f"{layer}.bias" for layer in ("head", "body", "tail")}
    with torch.no_grad():
        assert float((q(x) - model(x)).abs().mean() / model(x).abs().mean()) < 0.03
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


class _Refusing(nn.Module):
    def forward(self, _: Tensor) -> Tensor:
        raise ValueError("not today")


def test_parametrization_that_fails_is_named() -> None:
    model = Small()
    nn.utils.parametrize.register_parametrization(model.body, "weight", _Refusing(), unsafe=True)
    with pytest.raises(
        CaptureError, match=r"body: its parametrized weight cannot be computed \(ValueError: not today\)"
    ):
        quantized(model)


def _content(q: QuantizedModel) -> Checkpoint:
    return to_checkpoint(q.program, q.meta, torch.float16)


def test_the_models_given_are_left_as_they_were(tmp_path: Path) -> None:
    model, fresh = Medley().train(), Medley(seed=9).train()
    before = [{name: x.clone() for name, x in m.state_dict().items()} for m in (model, fresh)]
    q = quantized(model)
    q.save(tmp_path / "m.safetensors")
    fxptq.load(tmp_path / "m.safetensors", fresh)
    for m, state in zip((model, fresh), before, strict=True):
        assert m.training
        assert all(torch.equal(x, state[name]) for name, x in m.state_dict().items())
        assert all(p.requires_grad for p in m.parameters())


# -- which network ---------------------------------------------------------------------------------------------------


def _minmax(name: str) -> Recipe:
    table = PresetTable.model_validate({"images": 1, "passes": [{"name": "minmax"}]})
    return Recipe.load(name).model_copy(update={"presets": {"quick": table}})


def test_bundled_recipe_needs_no_model(tmp_path: Path) -> None:
    recipe = _minmax("edsr_x4")
    q = fxptq.quantize(recipe.build_model(), inputs(1) * 255, Bits(4, 4), inputs(1) * 255, recipe, preset="quick")
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors")
    x = inputs(1, 24, seed=3) * 255
    with torch.no_grad():
        assert torch.equal(loaded(x), q(x))
    assert loaded.task.name == "edsr_x4"
    assert loaded.task.scale == 4
    assert loaded.task.input.range == 255


def test_another_network_under_a_bundled_recipe_is_not_taken_for_it(tmp_path: Path) -> None:
    q = fxptq.quantize(edsr(), inputs(1), Bits(4, 4), inputs(), _minmax("edsr_x2"), preset="quick")
    q.save(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"holds a network of your own: pass it"):
        fxptq.load(tmp_path / "m.safetensors")
    assert_comes_back(q, edsr(seed=9), tmp_path)


@pytest.mark.parametrize("name", ["swinir_x5", "evil.toml", "./evil.toml"])
def test_a_checkpoint_cannot_choose_what_is_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = quantized(Small())
    monkeypatch.chdir(tmp_path)
    Path("evil.toml").write_text('name = "evil"\ntitle = "x"\n[model]\nfactory = "builtins:dict"\n')
    content = _content(q)
    changed = Checkpoint(
        content.meta.model_copy(update={"recipe": name}), content.codes, content.bounds, content.floats
    )
    checkpoints.write("m.safetensors", changed)
    with pytest.raises(CheckpointError, match=f"no recipe '{name}' in this fxptq"):
        fxptq.load("m.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"scale": "two"}}, "its task cannot be understood"),
        ({"example_dtype": "load"}, "its metadata cannot be understood"),
        ({"example_shape": [1, 3, 0, 16]}, "its metadata cannot be understood"),
        ({"float_dtype": "int8"}, "its metadata cannot be understood"),
    ],
    ids=["task", "dtype", "shape", "float"],
)
def test_metadata_that_was_made_up_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    content = _content(quantized(Small()))
    meta = content.meta.model_copy(update=change)
    checkpoints.write(tmp_path / "m.safetensors", Checkpoint(meta, content.codes, content.bounds, content.floats))
    with pytest.raises(CheckpointError, match=message):
        fxptq.load(tmp_path / "m.safetensors", Small())


def test_missing_bounds_are_named(tmp_path: Path) -> None:
    content = _content(quantized(Small()))
    bounds = {key: pair for key, pair in content.bounds.items() if key != "body.input"}
    checkpoints.write(tmp_path / "m.safetensors", Checkpoint(content.meta, content.codes, bounds, content.floats))
    with pytest.raises(CheckpointError, match=r"it has no bounds for body\.input"):
        fxptq.load(tmp_path / "m.safetensors", Small())


class Wider(Small):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(8, 8, 1)


class Deeper(Small):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(8, 8, 3)


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Small()

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class Skipping(Small):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(torch.relu(self.head(x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wider, r"body\.weight has shape \(8, 8, 3, 3\) there and \(8, 8, 1, 1\) in this network"),
        (Deeper, r"the checkpoint lacks more\.bias, more\.weight$"),
        (
            Renamed,
            r"stem\.body\.bias, .* and 3 more; this network lacks body\.bias, body\.weight, head\.bias and 3 more",
        ),
        (Skipping, r"it holds the site body \(1 such\), which this network lacks"),
    ],
    ids=["shape", "missing", "names", "graph"],
)
def test_wrong_architecture_is_named(model: type[nn.Module], message: str, tmp_path: Path) -> None:
    quantized(Small()).save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        fxptq.load(tmp_path / "m.safetensors", model())
    assert "\n" not in str(caught.value)


# -- determinism -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_another_seed_another_result(tmp_path: Path) -> None:
    files, learnt = [], []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # what the caller drew before does not matter
        q = fxptq.quantize(edsr(), inputs(1), Bits(3, 3), inputs(3, 24), settings(LEARNING, edges="low"), seed=seed)
        q.save(tmp_path / "m.safetensors")
        files.append((tmp_path / "m.safetensors").read_bytes())
        learnt.append(torch.cat([quantizer.lower.detach() for quantizer in q.program.quantizers.values()]))
    start = quantized(edsr(), Bits(3, 3), edges="low").program.quantizers.values()
    assert files[0] == files[1]
    assert not torch.equal(learnt[0], torch.cat([quantizer.lower.detach() for quantizer in start]))
    assert not torch.equal(learnt[0], learnt[2])


# -- the plan --------------------------------------------------------------------------------------------------------


def test_edges_and_connective_convolutions_of_a_transformer_have_eight_bits() -> None:
    q = quantized(swinir(), Bits(3, 2))
    by_kind = {kind: {site.bits for site in q.sites if site.kind == kind} for kind in ("conv2d", "linear", "matmul")}
    assert by_kind == {"conv2d": {(8, 8)}, "linear": {(3, 2)}, "matmul": {(2, 2)}}


def test_edges_of_a_convolutional_network_have_eight_bits() -> None:
    q = quantized(edsr(), Bits(3, 2))
    bits = {site.name: site.bits for site in q.sites if not site.reason}
    assert bits["head.0"] == (8, 8)
    assert bits["body.0.body.0"] == bits["body.1.body.2"] == (3, 2)
    assert next(site.bits for site in reversed(q.sites) if site.edge == "tail") == (8, 8)


def test_exceptions_by_pattern_first_match_wins() -> None:
    q = fxptq.quantize(
        swinir(),
        inputs(1),
        Bits(4, 4),
        inputs(),
        settings(),
        sites={"*.blocks.0.mlp.fc1": Bits(6, 5), "*.fc1": "float", "conv_first": Bits(2, 3)},
    )
    bits = {site.name: site.bits for site in q.sites}
    assert bits["layers.1.residual_group.blocks.0.mlp.fc1"] == (6, 5)
    assert bits["layers.1.residual_group.blocks.0.mlp.fc2"] == (4, 4)
    assert bits["conv_first"] == (2, 3)
    left = {site.name: site.reason for site in q.float_sites}
    assert left == {f"layers.{i}.residual_group.blocks.1.mlp.fc1": "left out by the pattern '*.fc1'" for i in (0, 1)}
    assert [(s.name, s.reason) for s in q.meta.float_sites] == list(left.items())


def test_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match=r"the pattern 'fc9' matches no site"):
        fxptq.quantize(Small(), inputs(1), Bits(4, 4), inputs(), settings(), sites={"fc9": "float"})


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example": [inputs(1)]}, r"the example is list; expected a tensor \[1, C, H, W\], or a tuple of them"),
        ({"example": ()}, "the example is nothing; expected a tensor"),
        ({"example": (inputs(1), 3)}, "the example is Tensor, int; expected a tensor"),
        ({"example": (inputs(1), inputs(1))}, "calibration input 0 has 1 tensors, and the example has 2"),
        ({"example": (inputs(1), inputs(1)), "calib": "synthetic"}, "the example has 2 inputs, and pictures make one"),
        ({"calib": [(inputs(1), inputs(1))]}, "calibration input 0 has 2 tensors, and the example has 1"),
        ({"calib": [(inputs(1), 3)]}, "calibration input 0 has a int at position 1; expected tensors"),
        ({"calib": [(inputs(1), inputs(1) / 0)]}, "calibration input 0 holds values that are not finite at position 1"),
        (
            {"example": 255 * inputs(1), "calib": "synthetic"},
            r"the example reaches 25\d.*, and pictures .* in 0..1, the",
        ),
        ({"example": torch.rand(3, 16, 16)}, r"the example has shape \(3, 16, 16\)"),
        ({"example": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "torch.uint8; expected .* floating point"),
        ({"seed": -1}, "the seed is -1; expected"),
        ({"seed": 1 << 64}, "the seed is 18446744073709551616; expected"),
        ({"calib": []}, "no calibration inputs were given"),
        ({"calib": torch.rand(1, 1, 16, 16)}, r"calibration input 0 has shape \(1, 1, 16, 16\)"),
        ({"preset": "fast"}, "no preset 'fast'; recipe mine has standard, quick, paper|no preset 'fast'"),
        ({"recipe": "swinir_x5"}, "no recipe 'swinir_x5'; did you mean 'swinir_x"),
        ({"recipe": settings('{ name = "dobbi" }')}, "there is no pass 'dobbi'; did you mean 'dobi'"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:32],
)
def test_unfit_argument_is_one_line(changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"example": inputs(1), "bits": Bits(4, 4), "calib": inputs(), "recipe": settings()}
    with pytest.raises(InputError, match=message) as caught:
        fxptq.quantize(Small(), **{**given, **changes})
    assert "\n" not in str(caught.value)


def test_every_stage_is_told_of() -> None:
    stages: list[str] = []
    fxptq.quantize(
        Small(), inputs(1), Bits(4, 4), inputs(), settings(DQC), after_pass=lambda name, _: stages.append(name)
    )
    assert stages == ["minmax", "dqc"]


def test_report_names_passes_and_quantizers() -> None:
    q = quantized(Small(), passes=DQC)
    assert [report.name for report in q.report][-2:] == ["minmax", "dqc"]
    assert set(q.report[-1].quantizers) == set(q.program.quantizers)


# -- several inputs --------------------------------------------------------------------------------------------------


class Guided(nn.Module):
    """A picture, a map of half its size, a level, and a table's index."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.small = Small(seed)
        self.level = nn.Linear(1, 3)
        self.table = nn.Embedding(4, 3)
        self.map = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor, guide: Tensor, level: Tensor, index: Tensor) -> Tensor:
        scale = self.level(level) + self.table(index)
        return self.small(x) * scale[:, :, None, None] + nn.functional.interpolate(self.map(guide), scale_factor=2)


def several(seed: int, side: int = 16) -> tuple[Tensor, ...]:
    guide = inputs(1, side // 2, seed + 100)[:, :1]
    return inputs(1, side, seed), guide, torch.tensor([[0.1 * seed]]), torch.tensor([seed % 4])


@pytest.mark.parametrize("passes", ['{ name = "minmax" }', LEARNING, '{ name = "minmax" }, { name = "gptq" }'])
def test_network_of_several_inputs(passes: str, tmp_path: Path) -> None:
    model, calib = Guided(), [several(seed) for seed in range(4)]
    q = fxptq.quantize(model, several(7), Bits(4, 4), calib, settings(passes))
    assert {site.name for site in q.sites} == {"small.head", "small.body", "small.tail", "level", "map"}
    assert q.meta.calibration == "4 inputs given as tensors"
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors", Guided(seed=9))
    integer = loaded.to_integer(compile=False)
    for x in (several(5), several(6, 24)):
        with torch.no_grad():
            assert torch.equal(loaded(*x), q(*x))
            assert float((q(*x) - model(*x)).abs().mean()) < 0.05
            torch.testing.assert_close(integer(*x), q(*x), rtol=0, atol=1e-3)


def test_training_on_several_inputs_moves_bounds() -> None:
    calib = [several(seed) for seed in range(4)]
    before, after = (
        fxptq.quantize(Guided(), several(7), Bits(3, 3), calib, settings(passes)).program.quantizers
        for passes in ('{ name = "minmax" }', LEARNING)
    )
    assert any(not torch.equal(before[key].width, after[key].width) for key in before)


# -- as the README has it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_readme_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "small.png", 20)
    names: dict[str, object] = {"MyNetwork": Small}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # the text is our own
    q, fast, x = names["q"], names["fast"], inputs(1, 64)
    assert isinstance(q, QuantizedModel)
    assert isinstance(fast, nn.Module)
    assert (tmp_path / "mine.safetensors").stat().st_size < 16000
    torch.testing.assert_close(fast(x), q(x), rtol=0, atol=1e-4)


def test_own_network_in_ten_lines(tmp_path: Path) -> None:
    model = Small().eval()
    example = torch.rand(1, 3, 16, 16)
    q = fxptq.quantize(model, example, bits=fxptq.Bits(w=4, a=4), preset="quick")
    q.save(tmp_path / "mine.safetensors")
    loaded = fxptq.load(tmp_path / "mine.safetensors", model=Small())
    with torch.no_grad():
        assert torch.equal(loaded(example), q(example))
        assert float((q(example) - model(example)).abs().mean()) < 0.02
    assert q.meta.calibration.startswith("16 generated pictures")


# -- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_bit_swinir_light_is_five_times_smaller(tmp_path: Path) -> None:
    recipe = Recipe.load("swinir_x4")
    torch.manual_seed(0)
    model = recipe.build_model()
    q = fxptq.quantize(model, inputs(1, 24), Bits(4, 4), inputs(2, 24), recipe, preset="quick")
    q.save(tmp_path / "m.safetensors")
    parts, whole = byte_counts(tmp_path / "m.safetensors"), 4 * sum(p.numel() for p in model.parameters())
    assert whole / parts.total >= 5, f"{whole} / {parts.total} bytes = {whole / parts.total:.2f}: {parts}"
