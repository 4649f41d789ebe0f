"""Makes modules that run graphs, whatever the names of the network's modules.

torch.fx writes a graph out as Python code, which cannot contain a module named `lambda`, or a name with a quotation
mark. Such names are replaced in the code, and only there.
"""

from __future__ import annotations

import copy
import keyword
import linecache
import weakref
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.fx import graph_module

from fxptq.graph.constants import attribute


def runnable(root: nn.Module | Mapping[str, Any], graph: fx.Graph, name: str = "GraphModule") -> fx.GraphModule:
    """The graph as a module.

    Args:
        root: a module that holds the targets of the graph, or the value of each target.
        graph: stays unchanged.
        name: the name of the module's class.
    """
    targets = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    names = {target: f"renamed_{index}" for index, target in enumerate(sorted(filter(_is_unspeakable, targets)))}
    if not names:
        return _forgotten_with(fx.GraphModule(root if isinstance(root, nn.Module) else dict(root), graph, name))
    renamed = copy.deepcopy(graph)
    for node in renamed.nodes:
        if node.op in ("get_attr", "call_module"):
            node.target = names.get(str(node.target), node.target)
    values = {
        names.get(target, target): attribute(root, target) if isinstance(root, nn.Module) else root[target]
        for target in targets
    }
    return _forgotten_with(fx.GraphModule(values, renamed, name))


def _forgotten_with(module: fx.GraphModule) -> fx.GraphModule:
    """torch.fx keeps the source of every module for tracebacks; from now on, only as long as the module exists."""
    file = module.forward.__code__.co_filename
    for keeper in (getattr(graph_module, "_loader", None), linecache):
        sources = getattr(keeper, "eval_cache" if keeper is not linecache else "cache", {})
        weakref.finalize(module, sources.pop, file, None).atexit = False
    return module


def _is_unspeakable(target: str) -> bool:
    return any(
        keyword.iskeyword(part) or not part.isprintable() or set(part) & set("\"'\\{}") for part in target.split(".")
    )
