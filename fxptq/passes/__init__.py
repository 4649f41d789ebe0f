"""Passes: the steps that set, train and round a network's quantizers, one after the other.

Importing this package imports every module in it, and a module registers its passes, so adding a pass is adding a file.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
