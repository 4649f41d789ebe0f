"""Quantizes a denoiser by a recipe of one's own: its task, its bits by site and its passes are data.

    python examples/own_recipe.py

The network and its trained weights come with fxptq, so that the figures mean something.
"""

from importlib import resources

import numpy as np
import torch
from safetensors.torch import load_file

import fxptq
from fxptq.data.synthetic import synthetic_image
from fxptq.evaluate.metrics import psnr
from fxptq.io.images import to_image, to_tensor

RECIPE = """
name = "mine"
title = "My denoiser, colour, noise level 25"

[model]
factory = "fxptq.models.dncnn:DnCNN"
args = { channels = 3, features = 32, blocks = 7 }

[input]
range = 1.0                      # the value of white
multiple = 1                     # height and width may be any number

[degradation]                    # makes noisy inputs from clean pictures, to calibrate with
kind = "noise"
sigma = 25.0

[quantize]
sites = { "body.[0-2].*" = "W4A6" }   # by pattern of site names

[presets.quick]
images = 4
passes = [{ name = "percentile", p = 99.9 }]
"""

if __name__ == "__main__":
    recipe = fxptq.Recipe.parse(RECIPE, "own_recipe.py")
    network = recipe.build_model()
    network.load_state_dict(load_file(str(resources.files("fxptq.models.weights") / "dncnn_s25.safetensors")))
    quantized = fxptq.quantize(network, torch.rand(1, 3, 48, 48), fxptq.Bits(4, 4), recipe=recipe, preset="quick")
    print(f"{quantized.task.title}; the task is {quantized.task.task}")
    for site in quantized.sites:
        print(f"   {site.name:12} W{site.bits[0]}A{site.bits[1]}")

    clean = synthetic_image(72, 96, 3, np.random.default_rng(1))
    noisy = to_tensor(recipe.task.apply(clean, np.random.default_rng(2)))
    with torch.no_grad():
        for name, output in (("noisy", noisy), ("float", network(noisy)), ("quantized", quantized(noisy))):
            print(f"{name:10} {psnr(to_image(output), clean):.2f} dB")
