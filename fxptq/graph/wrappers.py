"""Takes a network out of the wrappers of PyTorch, so that sites and tensors have the network's own names."""

from __future__ import annotations

from torch import nn

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def network_of(model: nn.Module) -> nn.Module:
    """The network that was handed to torch.compile, DataParallel or DistributedDataParallel; any other as it is."""
    while isinstance(model, nn.Module):
        inner = model.module if isinstance(model, _PARALLEL) else _written(model)
        if inner is model:
            break
        model = inner
    return model


def unwrap_inside(model: nn.Module) -> nn.Module:
    """Puts the parts of a network that went through torch.compile back as they were written, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            while (inner := _written(child)) is not child:
                child = module._modules[name] = inner  # noqa: PLW2901, SLF001  # a setter may forbid the name
    return model


def _written(model: nn.Module) -> nn.Module:
    return dict(model.named_children()).get("_orig_mod", model)
