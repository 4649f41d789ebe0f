"""Channels, attention and refit on small networks: float stays float, and the output has the last word."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fxptq.data.sources import Inputs
from fxptq.graph import Bits, Plan, Program
from fxptq.kernels.lower import lower
from fxptq.passes import trials
from fxptq.passes.base import Context, PassReport, run_passes
from fxptq.passes.judge import Judge, Snapshot
from fxptq.passes.maps import lattice
from fxptq.passes.multiples import exponents
from fxptq.passes.products import ProductSearch
from fxptq.quant.distribution import Distribution
from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.shares import Shares
from fxptq.quant.schemes.uniform import Uniform
from fxptq.quant.search import dobi2d
from fxptq.sizes import Sizes
from tests.networks.zoo import build, pictures

SCHEMES = (
    ("*.attention", "shares"),
    *((f"*.{name}", "affine") for name in ("query", "key", "value", "input", "weight")),
)
STEPS = ("channels", "attention", "refit")


def context(model: nn.Module, images: list[Inputs], bits: int = 3, schemes: object = SCHEMES) -> Context:
    """A student whose bounds are set, and its teacher."""
    plan = Plan(Bits(bits, bits), edges=None, connective=None, schemes=schemes)  # type: ignore[arg-type]
    example = images[0] if isinstance(images[0], tuple) else (images[0],)
    student = Program(model, example, plan)
    ctx = Context(student, Program(model, example, twin=student), images, sizes=Sizes(4))
    run_passes([("observe", {}), ("dobi2d", {"k": 30})], ctx)
    return ctx


def named(name: str, bits: int = 3, count: int = 6) -> Context:
    return context(build(name), [pictures(name, seed=seed)[0] for seed in range(count)], bits)


def error(ctx: Context, images: list[Inputs] | None = None) -> float:
    with torch.no_grad():
        outputs = [(ctx.student(x), ctx.teacher(x)) for x in images or ctx.images]
    return sum(float((a - b).square().mean()) for a, b in outputs)


class Uneven(nn.Module):
    """A residual branch whose channels differ in width and centre by far, as behind a trained LayerNorm."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kind = kind
        self.spread = nn.Parameter(torch.logspace(-1.5, 1, 16)[torch.randperm(16, generator=generator)])
        self.move = nn.Parameter(3 * torch.randn(16, generator=generator))
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        make = {"linear": lambda: nn.Linear(16, 16), "conv2d": lambda: nn.Conv2d(16, 16, 3, padding=1)}[kind]
        self.layer, self.other = make(), make()
        with torch.no_grad():
            for layer in (self.layer, self.other):
                shape = (16,) + (1,) * (layer.weight.dim() - 2)
                layer.weight.div_(self.spread.view(shape))
        self.tail = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x).movedim(1, -1)
        y = nn.functional.layer_norm(y, (16,)) * self.spread + self.move
        y = y if self.kind == "linear" else y.movedim(-1, 1)
        y = torch.relu(self.layer(y)) + self.other(y)
        y = y.movedim(-1, 1) if self.kind == "linear" else y
        out: Tensor = x + self.tail(y)
        return out


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(count: int = 8, side: int = 24) -> list[Inputs]:
    generator = torch.Generator().manual_seed(5)
    coarse = [torch.rand(1, 3, 6, 6, generator=generator) for _ in range(count)]
    return [nn.functional.interpolate(x, (side, side), mode="bicubic").clamp(0, 1) for x in coarse]


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_channels_of_different_widths_lose_less(kind: str) -> None:
    ctx = context(Uneven(kind).eval(), images())
    before = error(ctx)
    run_passes([("channels", {"stages": 1})], ctx)
    quantizers = ctx.student.quantizers
    first, weights = quantizers["layer.input"], [quantizers[f"{name}.weight"] for name in ("layer", "other")]
    assert isinstance(first, Affine)
    assert not first.is_identity
    assert "other.input" not in quantizers  # both layers read one tensor
    for weight in weights:
        assert isinstance(weight, Affine)
        torch.testing.assert_close(weight.factor * first.factor, torch.ones_like(first.factor))
        assert not bool(weight.center.any())
    assert first.factor.shape == ((16,) if kind == "linear" else (16, 1, 1))
    assert error(ctx) < 0.5 * before


class Priced(nn.Module):
    """Narrow channels of a fine input, which a map would serve, and for which the rows of the weight would pay."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.head, self.layer, self.tail = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(16, 3, 1, 1, generator=generator))
            self.head.weight[8:] *= 0.1
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
            self.layer.weight.copy_(torch.randn(16, 16, 1, 1, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.tail(self.layer(self.head(x)))
        return out


@pytest.mark.parametrize("widths_move", [False, True], ids=["widths stay", "widths move"])
def test_where_widths_move_a_map_may_cost_the_weight_more_than_it_brings_now(widths_move: bool) -> None:
    ctx = context(Priced().eval(), images(), bits=4)
    ctx.student.set_bits({"layer.input": 7, "layer.weight": 3})
    run_passes([("dobi2d", {"k": 30}), ("channels", {"stages": 1, "widths_move": widths_move})], ctx)
    entry = ctx.student.quantizers["layer.input"]
    assert isinstance(entry, Affine)
    assert entry.is_identity is not widths_move


class Reparametrised(nn.Module):
    """Convolutions as multiplied out of several and a skip: the taps in the middle are far stronger than all others."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.body = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)))
        with torch.no_grad():
            for layer in self.body:
                layer.weight[..., 1, 1] *= 10

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for layer in self.body:
            y = y + nn.functional.silu(layer(y))
        out: Tensor = x + self.tail(y)
        return out


def test_taps_of_different_strength_get_steps_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, plain = context(Reparametrised().eval(), images(), bits=3), context(Reparametrised().eval(), images(), bits=3)
    monkeypatch.setattr(trials, "exponents", lambda *_: iter(()))
    run_passes([("channels", {"stages": 1}), ("refit", {})], plain)
    monkeypatch.undo()
    notes = run_passes([("channels", {"stages": 1})], ctx)[-1].notes
    assert "3 weights with several steps a row" in notes
    weights = [ctx.student.quantizers[f"body.{i}.weight"] for i in range(3)]
    for weight in weights:
        assert isinstance(weight, Affine)
        middle = weight.multiples[:, 1, 1].mean()
        assert float(middle) > 2 * float(weight.multiples.mean())
    run_passes([("refit", {})], ctx)
    assert error(ctx) < 0.8 * error(plain)
    steps = {"steps": 4, "batch": 2, "patch": 16, "weight_lr": 0.01, "lr": 0.0, "keep_codes": True, "holdout_crops": 2}
    run_passes([("dqc", steps)], ctx)
    assert all(grid.zero_code is not None for weight in weights for grid in Uniform.grids(weight))  # type: ignore[union-attr,arg-type]
    integers = lower(ctx.student, compile=False)  # type: ignore[arg-type]
    with torch.no_grad():
        apart = [(integers(x) - ctx.student(x)).abs() for x in ctx.images]
    equal = [float(difference.max()) < 1e-4 for difference in apart]
    # A code of an image may lie within rounding of a tie, where it touches a tenth of the picture.
    assert sum(equal) >= len(equal) - 2
    assert all(float((difference > 1e-4).float().mean()) < 0.1 for difference in apart)


def test_layers_of_even_taps_keep_one_step_a_row() -> None:
    ctx = context(Uneven("conv2d").eval(), images())
    run_passes([("channels", {"stages": 1})], ctx)
    weights = (q for key, q in ctx.student.quantizers.items() if key.endswith(".weight"))
    assert not any(bool(weight.exponents.any()) for weight in weights if isinstance(weight, Affine))


def test_exponents_follow_the_strength_of_columns() -> None:
    weight = torch.ones(4, 5, 3, 3)
    weight[:, :, 1, 1] *= 4
    weight[:, 2] *= 2
    found = [tried.tolist() for tried in exponents(weight, 3)]
    expected = torch.zeros(5, 3, 3, dtype=torch.uint8)
    expected[:, 1, 1] += 2
    expected[2] += 1
    assert found == [expected.tolist(), (expected + 1).tolist()] * 2
    assert max(int(tried.max()) for tried in exponents(weight, 6)) == 1
    assert not list(exponents(weight, 8))  # no room
    assert not list(exponents(weight[..., :1, :1], 3))  # no taps
    assert not list(exponents(torch.zeros(4, 5, 3, 3), 3))


def test_a_weight_that_meets_two_inputs_gets_no_factor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(torch.relu(self.layer(x)))  # type: ignore[no-any-return]

    ctx = context(Twice().eval(), images())
    run_passes([("channels", {})], ctx)
    for quantizer in ctx.student.quantizers.values():
        assert isinstance(quantizer, Affine)
        assert bool((quantizer.factor == 1).all())


NETWORKS = [
    "shifted windows",
    "channel attention over pixels",
    "MultiheadAttention",
    "learned tokens",
    "summary tokens",
    "dense connections",
    "strided U-Net",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_leaves_the_float_network_alone_and_the_output_no_worse_on_held_out_inputs(name: str) -> None:
    ctx = named(name)
    for step in STEPS[:2]:
        judge = Judge(ctx, 0.25)
        run_passes([(step, {"stages": 2})], ctx)
        assert Judge(ctx, 0.25).error <= judge.error
    modes = {key: quantizer.mode for key, quantizer in ctx.student.quantizers.items()}
    for quantizer in ctx.student.quantizers.values():
        quantizer.mode = "off"
    for x in (*ctx.images[:2], pictures(name, 48, 32, batch=2)[0]):
        with torch.no_grad():
            assert torch.equal(ctx.student(x), ctx.teacher(x))
    for key, quantizer in ctx.student.quantizers.items():
        quantizer.mode = modes[key]
    before = Judge(ctx, 0.25).error
    run_passes([("refit", {})], ctx)
    assert Judge(ctx, 0.25).error <= before
    with torch.no_grad():  # maps lie along axes that are the same at every size
        for height, width, batch in ((48, 32, 1), (32, 64, 3)):
            assert bool(ctx.student(pictures(name, height, width, batch=batch)[0]).isfinite().all())


ALL = frozenset((-3, -2, -1))


def factors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query [windows, heads, N, d], key [windows, heads, d, M] and value of uneven heads and channels."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 12, 2, 16, 6, generator=generator)
    heads, channels = torch.tensor([0.3, 3.0]).view(2, 1, 1), torch.logspace(-0.7, 0.7, 6)
    key = (key + 4 * torch.randn(2, 1, 6, generator=generator)) / channels
    return query * heads * channels, key.transpose(-2, -1), value * heads + channels


def plain(x: Tensor, bits: int) -> Tensor:
    """Values on one grid for the whole tensor, with the bounds of least squared error."""
    quantizer = Uniform(bits)
    found = dobi2d(Distribution.of(x), quantizer, 50)
    quantizer.set_bounds(found.lower, found.upper)
    quantizer.mode = "on"
    return quantizer(x)


def off(ours: Tensor, theirs: Tensor) -> float:
    apart = (ours - theirs).detach()
    return float((apart - apart.mean(-1, keepdim=True)).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_queries_and_keys_share_channels_and_leave_sums_of_codes(bits: int) -> None:
    query, key, _ = factors()
    first, second = ProductSearch(50).scores((Affine(bits), Affine(bits)), query, key, (ALL, ALL))
    assert isinstance(first, Affine)
    assert isinstance(second, Affine)
    assert (first.factor.shape, second.factor.shape) == ((2, 1, 6), (2, 6, 1))
    both = first.factor * second.factor.transpose(1, 2)
    torch.testing.assert_close(both, both[..., :1].expand_as(both))  # one number for each head
    assert not bool(first.center.any())
    torch.testing.assert_close(first.lower, -first.upper)  # no offset meets the codes of the key
    logits = query @ key
    assert off(first(query) @ second(key), logits) < 0.5 * off(plain(query, bits) @ plain(key, bits), logits)


def test_sums_over_positions_get_maps_of_their_outer_axes_alone() -> None:
    query, key, _ = factors()
    rows, columns = query.transpose(-2, -1), key.transpose(-2, -1)  # attention over channels: [.., d, N] by [.., N, d]
    sized = frozenset((-3, -2)), frozenset((-3, -1))
    first, second = ProductSearch(50).scores((Affine(3), Affine(3)), rows, columns, sized)
    assert isinstance(first, Affine)
    assert isinstance(second, Affine)
    assert (first.factor.shape, second.factor.shape) == ((2, 6, 1), (2, 1, 6))


def test_values_have_bounds_for_each_channel_and_weights_a_ceiling() -> None:
    query, key, value = factors()
    attention = (query @ key).softmax(-1)
    first, second = ProductSearch(50).mix((Shares(3), Affine(3)), attention, value, (ALL, ALL))
    assert isinstance(first, Shares)
    assert isinstance(second, Affine)
    assert second.factor.shape == (2, 1, 6)
    mixed = attention @ value
    error = (first(attention) @ second(value) - mixed).square().mean()
    assert float(error) < 0.5 * float((plain(attention, 3) @ plain(value, 3) - mixed).square().mean())
    no_head = ProductSearch(50).mix((Shares(3), Affine(3)), attention, value, (ALL, frozenset((-3,))))[1]
    assert no_head.factor.shape == (2, 1, 1)  # type: ignore[union-attr]


def test_a_change_that_makes_the_output_worse_is_taken_back() -> None:
    ctx = context(Uneven("linear").eval(), images())
    judge = Judge(ctx, 0.25)
    student, key = ctx.student, "layer.weight"
    weight, bias = student.weight_of(key), student.bias_of(key)
    assert weight is not None
    assert bias is not None
    before = error(ctx)

    def spoil() -> None:
        student.set_weight(key, torch.zeros_like(weight))
        student.set_bias(key, bias + 100)
        student.quantizers["layer.input"].set_bounds(-1e-3, 1e-3)

    kept = judge.keeps(["layer.input", key], spoil)
    assert not kept
    assert error(ctx) == before
    assert judge.keeps(["layer.input"], lambda: None) is False  # no better is not better


def test_a_snapshot_gives_maps_back_too() -> None:
    ctx = context(Uneven("linear").eval(), images())
    run_passes([("channels", {"stages": 1})], ctx)
    quantizer = ctx.student.quantizers["layer.input"]
    assert isinstance(quantizer, Affine)
    before, expected = Snapshot.of(ctx.student, ["layer.input"]), error(ctx)
    quantizer.set_map()
    assert error(ctx) != expected
    before.restore()
    assert error(ctx) == expected


def test_refit_corrects_means_and_lands_on_the_grid() -> None:
    ctx = context(Uneven("linear").eval(), images(), bits=2)
    before = error(ctx)
    reports: tuple[PassReport, ...] = run_passes([("refit", {})], ctx)
    assert error(ctx) < before
    for key, quantizer in ctx.student.quantizers.items():
        weight = ctx.student.weight_of(key)
        if weight is not None and key in reports[-1].quantizers:
            assert torch.equal(quantizer(weight), weight)
            figures = reports[-1].quantizers[key]
            assert figures["snr_db"] >= figures["nearest_snr_db"]


def test_at_eight_bits_products_need_no_map() -> None:
    ctx = named("shifted windows", bits=8)
    report = run_passes([("attention", {})], ctx)[-1]
    assert "below 8 bits whose bounds are set" in report.notes[0]


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_at_eight_bits_inputs_that_make_much_of_the_error_get_a_map(kind: str) -> None:
    ctx = context(Uneven(kind).eval(), images(), bits=8)
    before = error(ctx)
    run_passes([("channels", {"stages": 1})], ctx)
    first = ctx.student.quantizers["layer.input"]
    assert isinstance(first, Affine)
    assert not first.is_identity
    assert error(ctx) < 0.5 * before


def test_at_eight_bits_ranges_reach_to_the_extremes_of_all_positions() -> None:
    class Rare(nn.Module):
        """One position in a picture's corner has values 20 times as large as all others."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
            self.register_buffer("rare", torch.logspace(-1, 1, 16).view(16, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            corner = torch.zeros_like(y)
            corner[..., 0, 0] = 1
            out: Tensor = self.tail(y + corner * self.rare)
            return out

    model = Rare().eval()
    ctx = context(model, images(), bits=8)
    run_passes([("channels", {"stages": 1})], ctx)
    tail = ctx.student.quantizers["tail.input"]
    assert isinstance(tail, Affine)
    assert not tail.is_identity
    with torch.no_grad():
        corner = torch.stack([model.layer(x)[0, :, :1, :1] + model.rare for x in Judge(ctx, 0.25).inputs])
    assert float((tail.quantize(corner) - corner).abs().max()) < 0.02 * float(corner.abs().max())


def test_a_mean_that_refit_will_correct_takes_no_map_back() -> None:
    class Far(nn.Module):
        """Channels of the last layer's input lie far from zero, and differ in width by far."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
            self.register_buffer("width", torch.logspace(-2, 1, 16).view(16, 1, 1))
            self.register_buffer("offset", 10 * torch.randn(16, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.tail(self.width * self.head(x) + self.offset)
            return out

    ctx = context(Far().eval(), images(), bits=8)
    before = error(ctx)
    run_passes([("channels", {"stages": 1})], ctx)
    tail = ctx.student.quantizers["tail.input"]
    assert isinstance(tail, Affine)
    assert not tail.is_identity
    run_passes([("refit", {})], ctx)
    assert error(ctx) < 0.01 * before


@pytest.mark.parametrize("bits", [8, 4])
def test_fine_ranges_leave_room_for_pictures_of_stronger_colours_than_the_calibration(bits: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 3, 1)).eval()
    with torch.no_grad():  # the first layer reads differences of colours, and grey is nothing to it
        model[0].weight -= model[0].weight.mean(1, keepdim=True)
    pictures = [x for x in images() if isinstance(x, Tensor)]
    grey = [x.mean(1, keepdim=True) for x in pictures]
    pale = [y + 0.3 * (x - y) for x, y in zip(pictures, grey, strict=True)]
    pale[0][..., :2, :2], pale[1][..., :2, :2] = 0.0, 1.0  # black and white are in the calibration
    ctx = context(model, [*pale], bits=bits)
    run_passes([("channels", {"stages": 1})], ctx)
    strong = [y + 0.5 * (x - y) for x, y in zip(pictures, grey, strict=True)]
    with torch.no_grad():
        for key, stage in (("1.input", model[:1]), ("2.input", model[:2])):
            quantizer = ctx.student.quantizers[key]
            values = torch.cat([quantizer.normalize(stage(x)).flatten() for x in strong])
            clipped = ((values < quantizer.lower) | (values > quantizer.upper)).double().mean()
            assert clipped < 0.01 if bits == 8 else clipped > 0.01, key


def test_a_channel_that_is_still_in_the_sample_and_wide_elsewhere_does_not_stretch_the_grid_of_others() -> None:
    class Sleeping(nn.Module):
        """One channel is nearly constant but in a picture's corner, where it is as wide as the others."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
            self.register_buffer("widths", torch.logspace(0, 1, 16).view(16, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            asleep = torch.ones_like(x[:, :1])
            asleep[..., 2:, 2:] = 1e-3
            still, others = (self.layer(x) * self.widths).split([1, 15], 1)
            return self.tail(torch.cat([still * asleep, others], 1))  # type: ignore[no-any-return]

    ctx = context(Sleeping().eval(), images(), bits=4)
    run_passes([("channels", {"stages": 1})], ctx)
    tail = ctx.student.quantizers["tail.input"]
    assert isinstance(tail, Affine)
    assert not tail.is_identity
    seen: list[Tensor] = []
    tail.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        ctx.student(*ctx.placed(ctx.images[0]))
        assert float(tail.normalize(seen[0]).abs().max()) < 4 * float(tail.upper - tail.lower)


def test_pictures_of_eight_bits_lose_nothing_at_an_input_of_eight_bits() -> None:
    class Shifted(nn.Module):
        """A head behind the subtraction of a mean colour."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.404]).view(3, 1, 1))
            self.head = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x - self.mean)  # type: ignore[no-any-return]

    pictures_of_8_bits = [(x * 255).round() / 255 for x in images(side=48) if isinstance(x, Tensor)]
    model = Shifted().eval()
    ctx = context(model, list(pictures_of_8_bits), bits=8)
    report = run_passes([("channels", {"stages": 1})], ctx)[-1]
    assert "lattice: 1" in report.notes
    unseen = (255 * torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(9))).round() / 255
    values = unseen - model.mean
    quantized = ctx.student.quantizers["head.input"].quantize(values)
    reached = (
        torch.stack([x.amin((0, 2, 3)) for x in pictures_of_8_bits]).amin(0),
        torch.stack([x.amax((0, 2, 3)) for x in pictures_of_8_bits]).amax(0),
    )
    inside = (unseen >= reached[0].view(3, 1, 1)) & (unseen <= reached[1].view(3, 1, 1))
    assert bool(inside.any())
    assert float((quantized - values)[inside].abs().max()) < 1e-5


def test_the_picture_gets_its_grid_where_others_make_nearly_all_of_the_error() -> None:
    class Wide(nn.Module):
        """Behind the head, values are a thousand times as large, so that four bits lose much."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 8, 3, padding=1)
            self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            self.tail = nn.Conv2d(8, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x)
            return self.tail(y + 1000 * self.body(y))  # type: ignore[no-any-return]

    pictures_of_8_bits = [(20 + 200 * x).round() / 255 for x in images(side=48) if isinstance(x, Tensor)]
    schemes = (("*.input", "affine"), ("*.weight", "affine"))
    student = Program(Wide().eval(), pictures_of_8_bits[0], Plan(Bits(3, 3), schemes=schemes))
    ctx = Context(student, Program(student.holder.model, pictures_of_8_bits[0], twin=student), list(pictures_of_8_bits))
    run_passes([("observe", {}), ("dobi2d", {"k": 50})], ctx)
    assert student.quantizers["head.input"].bits == 8
    report = run_passes([("channels", {"stages": 1})], ctx)[-1]
    assert "lattice: 1" in report.notes


@pytest.mark.parametrize(
    ("darkest", "lightest", "below"),
    [
        pytest.param((0, 0, 7), (245, 230, 240), 0, id="black is shared"),
        pytest.param((10, 12, 15), (255, 255, 200), 10, id="white is shared"),
        pytest.param((0, 0, 0), (255, 255, 255), 0, id="both are shared"),
        pytest.param((10, 12, 15), (244, 230, 240), 10, id="none is shared"),
    ],
)
def test_a_lattice_ends_where_several_pictures_end(
    darkest: tuple[int, ...], lightest: tuple[int, ...], below: int
) -> None:
    """Room that no picture has reached lies beyond the end that only one picture has, or on both sides."""
    rows = torch.arange(min(darkest), max(lightest) + 1)[:, None] / 255 - 0.4
    ends = torch.tensor([end for pair in zip(darkest, lightest, strict=True) for end in pair])[:, None] / 255 - 0.4
    (candidate,) = lattice(rows, ends, 8)
    assert float(candidate.center) == pytest.approx((min(darkest) - below) / 255 - 0.4, abs=1e-6)
    assert candidate.width == pytest.approx(1, abs=1e-5)


def test_values_that_lie_on_no_lattice_get_none() -> None:
    ctx = context(Uneven("conv2d").eval(), images(), bits=8)
    report = run_passes([("channels", {"stages": 1})], ctx)[-1]
    assert not any(note.startswith("lattice") for note in report.notes)


def test_one_bad_change_does_not_cost_the_good_ones_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = named("shifted windows", bits=4)
    quantizers = ctx.student.quantizers
    keys = [key for key in quantizers if key.endswith(".input")][:8]
    bad = keys[3]
    changed = Affine(4)
    changed.set_bounds(-0.5, 0.25)
    states = [{key: {name: tensor.clone() for name, tensor in changed.stored().items()}} for key in keys]

    def measure(_judge: Judge) -> float:
        """Each change lowers the error by 1, and one raises it by 100."""
        done = [key for key in keys if float(quantizers[key].upper) == 0.25]
        return 50.0 - len(done) + 100 * (bad in done)

    monkeypatch.setattr(Judge, "measure", measure)
    assert Judge(ctx, 0.25).keeps_states(states, 1) == 7
    assert [key for key in keys if float(quantizers[key].upper) != 0.25] == [bad]


def test_statistics_behind_a_former_map_are_forgotten() -> None:
    ctx = context(Uneven("linear").eval(), images())
    assert "layer.input" in ctx.statistics
    without_map = error(ctx)
    run_passes([("channels", {"stages": 1})], ctx)
    assert "layer.input" not in ctx.statistics
    run_passes([("observe", {})], ctx)
    run_passes([("dobi2d", {"k": 50})], ctx)
    assert error(ctx) < 0.05 * without_map  # the search is behind the map, for inputs and weights


def test_strips_that_count_the_pixels_of_the_other_side_get_no_map_along_them() -> None:
    class Strips(nn.Module):
        """Attention within rows; the axis in the place of heads is the height of the picture."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.qkv, self.tail = nn.Conv2d(3, 8, 1), nn.Linear(8, 24), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.head(x).permute(0, 2, 3, 1)).chunk(3, -1)
            y = ((q * 3) @ k.transpose(-2, -1)).softmax(-1) @ v
            return x + self.tail(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    ctx = context(Strips().eval(), images(), bits=3)
    run_passes([("attention", {})], ctx)
    for key, quantizer in ctx.student.quantizers.items():
        if isinstance(quantizer, Affine) and quantizer.factor.dim() == 3:
            assert quantizer.factor.shape[0] == 1, key
    with torch.no_grad():
        assert ctx.student(torch.rand(1, 3, 16, 36)).isfinite().all()


@pytest.mark.parametrize(("step", "kept"), [(0.0, 8), (0.01, 8), (0.2, 0)], ids=["unseen", "hardly seen", "worse"])
def test_what_the_output_hardly_shows_is_kept(monkeypatch: pytest.MonkeyPatch, step: float, kept: int) -> None:
    """Of an error of 100, each change adds so much; a thousandth of it is no verdict."""
    ctx = named("shifted windows", bits=4)
    quantizers = ctx.student.quantizers
    keys = [key for key in quantizers if key.endswith(".input")][:8]
    changed = Affine(4)
    changed.set_bounds(-0.5, 0.25)
    states = [{key: {name: tensor.clone() for name, tensor in changed.stored().items()}} for key in keys]

    def measure(_judge: Judge) -> float:
        return 100 + step * sum(float(quantizers[key].upper) == 0.25 for key in keys)

    monkeypatch.setattr(Judge, "measure", measure)
    assert Judge(ctx, 0.25).keeps_states(states, 1) == kept
