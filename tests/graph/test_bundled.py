"""The bundled networks, small: captured bit for bit, with eager's gradients and the same names at every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxptq.graph import Program
from fxptq.models.edsr import EDSR
from fxptq.models.swinir import SwinIR

SMALL: dict[str, Any] = {"img_size": 16, "embed_dim": 12, "depths": (2,), "num_heads": (2,), "mlp_ratio": 2.0}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "swinir light": lambda: SwinIR(**SMALL, window_size=8, upscale=3, upsampler="pixelshuffledirect"),
    "swinir classical": lambda: SwinIR(**SMALL, window_size=8, upscale=2, upsampler="pixelshuffle"),
    "swinir real": lambda: SwinIR(**SMALL, window_size=8, upscale=4, upsampler="nearest+conv", resi_connection="3conv"),
    "swinir grey": lambda: SwinIR(**SMALL, window_size=8, upscale=1, in_chans=1),
    "swinir jpeg": lambda: SwinIR(**{**SMALL, "img_size": 14}, window_size=7, upscale=1, img_range=255.0),
    "swinir ape": lambda: SwinIR(**SMALL, window_size=8, upscale=2, upsampler="pixelshuffledirect", ape=True),
    "edsr": lambda: EDSR(n_resblocks=2, n_feats=8, scale=4),
    "edsr x3": lambda: EDSR(n_resblocks=2, n_feats=8, scale=3, res_scale=0.1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_eager(name: str, agrees: Callable[..., Program]) -> None:
    colours = 1 if name == "swinir grey" else 3
    sizes = [(1, 16, 16), (2, 16, 16)] if "ape" in name else [(1, 8, 16), (1, 13, 10), (2, 16, 16), (1, 16, 7)]
    model = NETWORKS[name]().requires_grad_(False)
    program = agrees(model, *[(n, colours, h, w) for n, h, w in sizes])
    assert len(program.variants) <= 3
    assert all(v.capture.tolerance == 0 and v.capture.pinned is None for v in program.variants)


@pytest.mark.parametrize("name", ["swinir classical", "edsr"])
def test_gradients_of_parameters(name: str) -> None:
    model = NETWORKS[name]().eval().requires_grad_(True)
    x = torch.rand(1, 3, 16, 24)
    program = Program(model, x)
    program.holder.model.requires_grad_(True)
    program(x).square().mean().backward()
    model(x).square().mean().backward()
    own = dict(program.holder.model.named_parameters())
    for key, parameter in model.named_parameters():
        if key.endswith("bias_table"):
            continue  # the bias looked up in it is computed once, when the network is captured
        assert own[key].grad is not None, key
        torch.testing.assert_close(own[key].grad, parameter.grad)


@pytest.mark.parametrize("name", ["swinir light", "swinir jpeg", "edsr"])
def test_names_do_not_depend_on_the_size(name: str) -> None:
    model = NETWORKS[name]().eval()
    tables = [Program(model, torch.rand(shape)).sites for shape in ((1, 3, 14, 14), (1, 3, 16, 16), (2, 3, 21, 40))]
    for table in tables[1:]:
        assert [(s.name, s.kind, s.role, s.edge, s.reason) for s in table] == [
            (s.name, s.kind, s.role, s.edge, s.reason) for s in tables[0]
        ]
    assert len({site.name for site in tables[0]}) == len(tables[0])


def test_deterministic() -> None:
    def table(program: Program) -> list[str]:
        return [str(node.format_node()) for node in program.variants[0].inserted.nodes]

    model, x = NETWORKS["swinir light"]().eval(), torch.rand(1, 3, 16, 24)
    assert table(Program(model, x)) == table(Program(model, x))
