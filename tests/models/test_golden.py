"""Our networks against outputs of the original arithmetic, and of a plain re-derivation, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fxptq.io.state_dict import is_derived, load_state
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR

from .reference import hashed

OWN = Path(__file__).parent / "golden"
ORIGINAL = [
    "edsr_x2",
    "edsr_x3",
    "edsr_x4",
    "swinir_classical_x3",
    "swinir_denoise",
    "swinir_jpeg_w7",
    "swinir_light_x4",
    "swinir_real_x4_3conv",
]


def read(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network of a golden file, its weights still to be set, and the file's tensors."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    return EDSR(**config) if "n_feats" in config else SwinIR(**config), tensors


def assert_outputs(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    model = model.double().eval()
    indices = [key.removeprefix("input/") for key in tensors if key.startswith("input/")]
    assert indices
    for index in indices:
        expected = tensors[f"output/{index}"]
        with torch.inference_mode():
            actual = model(tensors[f"input/{index}"].double())
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", ORIGINAL)
def test_outputs_of_the_original(shared: Path, name: str) -> None:
    model, tensors = read(shared / "data" / "golden" / f"{name}.safetensors")
    load_state(model, {key.removeprefix("weights/"): t for key, t in tensors.items() if key.startswith("weights/")})
    assert_outputs(model, tensors)


@pytest.mark.parametrize("path", sorted(OWN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_outputs_of_the_plain_reference(path: Path) -> None:
    model, tensors = read(path)
    shapes = {key: t.shape for key, t in model.state_dict().items() if not is_derived(key)}
    load_state(model, {key: torch.from_numpy(hashed(key, shape)) for key, shape in shapes.items()})
    assert_outputs(model, {key: t.unsqueeze(0) for key, t in tensors.items()})


def test_reference_set_is_there() -> None:
    assert len(list(OWN.glob("*.safetensors"))) == 8


def test_stored_mask_equals_the_one_computed() -> None:
    torch.manual_seed(0)
    model = SwinIR(img_size=16, depths=(2,), num_heads=(2,), embed_dim=8, upscale=1).double().eval()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.inference_mode():
        stored = model(image)
        model.img_size = 0
        computed = model(image)
    assert torch.equal(stored, computed)


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    model = SwinIR(img_size=16, depths=(2,), num_heads=(2,), embed_dim=8, upscale=1).double().eval()
    images = torch.rand(3, 3, 9, 17, dtype=torch.float64)
    with torch.inference_mode():
        together = model(images)
        alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampler": "magic"}, "upsampler is 'magic'"),
        ({"upsampler": "", "upscale": 2}, "upscale is 2; without an upsampler it must be 1"),
        ({"upsampler": "nearest+conv", "upscale": 3}, "upscale is 3"),
        ({"upsampler": "pixelshuffle", "upscale": 6}, "scale is 6; expected a power of two, or 3"),
        ({"resi_connection": "2conv", "upscale": 1}, "resi_connection is '2conv'"),
        ({"img_size": 60, "upscale": 1}, "img_size is 60; expected a multiple of window_size, 8"),
    ],
)
def test_impossible_network_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinIR(depths=(1,), num_heads=(1,), embed_dim=8, **options)
