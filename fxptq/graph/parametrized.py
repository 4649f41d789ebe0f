"""Layers whose weight is computed from other tensors by torch's own tools, turned into plain layers.

`weight_norm`, `spectral_norm` and everything built on `torch.nn.utils.parametrize` compute a weight anew in each
forward from parameters that in evaluation do not change. Promises: the output of the network stays the same, bit for
bit, and its state holds each weight in place of the parameters that the weight was computed from.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxptq.errors import CaptureError


def make_weights_plain(model: nn.Module) -> nn.Module:
    """Computes parametrized weights once and for all, in place; returns the model, in evaluation mode.

    Raises:
        CaptureError: a parametrization cannot be computed.
    """
    model.eval()
    for path, module in model.named_modules():
        try:
            _make_plain(module)
        except Exception as error:  # a parametrization may be anybody's code
            raise CaptureError(
                f"{path or 'the network'}: its parametrized weight cannot be computed ({type(error).__name__}: "
                f"{error}); call torch.nn.utils.parametrize.remove_parametrizations on the layer first"
            ) from error
    return model


def _make_plain(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        # Not remove_parametrizations: it changes the class, which a copy shares with the user's own layer.
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)  # that is what torch keeps there  # noqa: S101
        values = {name: getattr(module, name).detach().clone() for name in parametrizations}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for hook in list(module._forward_pre_hooks.values()):  # noqa: SLF001  # torch has no other list of them
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
