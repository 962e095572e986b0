"""Exported programs as plain text to read: export, op names, arguments, module paths."""

from __future__ import annotations

import io
import logging
import operator
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from traceback import walk_tb
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from ..machine.alone import READING
from ..machine.private import HigherOrderOperator, OpOverload, graphs_only, tree_leaves
from ..machine.randomness import own_random
from ..machine.surroundings import LOGGERS


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """Export a model in the mode it is in; raises whatever its own code raises on this input."""
    with READING, silence(), uncompiled(), own_random(torch.device("cpu")), graphs_only():
        program = torch.export.export(model, args, kwargs, strict=False)
    for node in calls(program.graph_module):
        stack = node.meta.get("nn_module_stack") or {}
        stack |= {run: (_unsliced(model, path), kind) for run, (path, kind) in stack.items() if "slice(" in path}
    return program


SLICE = re.compile(r"slice\((None|-?\d+), (None|-?\d+), (None|-?\d+)\)")


def _unsliced(model: nn.Module, path: str) -> str:
    """The path of a module that the code took out of a slice of a list, `self.blocks[1:]`; where some module of the
    model has two names, PyTorch writes it as `blocks.slice(1, None, None).0`."""
    module, found, chosen = model, list[str](), list[str]()
    for part in path.split("."):
        if cut := SLICE.fullmatch(part):
            limits = (None if limit == "None" else int(limit) for limit in cut.groups())
            chosen = (chosen or list(module._modules))[slice(*limits)]
            continue
        renumbered = chosen and isinstance(module, nn.ModuleList)
        name = chosen[int(part)] if renumbered else part
        found, chosen, module = [*found, name], [], module.get_submodule(name)
    return ".".join(found)


REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled", "tag_activation_checkpoint")
"""Ops that run a graph of their own on what is given behind it, and change nothing of what it computes."""


def is_open(program: torch.export.ExportedProgram) -> bool:
    """Whether sizes in a program are only known when it runs: of what is picked by a mask."""
    outputs = (output for node in calls(program.graph_module) for output in tree_leaves(node.meta.get("val")))
    return any(not isinstance(size, int) for each in outputs if isinstance(each, torch.Tensor) for size in each.shape)


def region(node: torch.fx.Node) -> int | None:
    """For an op that runs a graph of its own, which of its arguments that is; None for any other."""
    if not isinstance(node.target, HigherOrderOperator) or node.target.name() not in REGIONS:
        return None
    return next(i for i, arg in enumerate(node.args) if isinstance(arg, torch.fx.Node) and arg.op == "get_attr")


def calls(module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """The ops of a graph, and of those inside it, in order."""
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        inside = region(node)
        if inside is None:
            yield node
        else:
            yield from calls(getattr(module, node.args[inside].target))


def op_name(target: Any) -> str:
    """`aten.relu_.default` -> `relu`; ops of other namespaces keep theirs."""
    if not isinstance(target, OpOverload):
        plain = isinstance(target, (FunctionType, BuiltinFunctionType))  # whose text has an address in it
        return f"{target.__module__}.{target.__name__}" if plain else str(target)
    return rule_name(target._schema.name)


def rule_name(text: str) -> str:
    """The name under which an op's rule is found, from any way of writing it: `mylib::myop`, `aten.relu_.default`."""
    namespace, _, name = text.replace("::", ".").removesuffix(".default").rpartition(".")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace in ("", "aten") else f"{namespace}.{name}"


def module_path(node: torch.fx.Node) -> str:
    """Path of the innermost module whose forward ran this op; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values()) if path), "")


def bind(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the op's schema, defaults filled in."""
    bound: dict[str, Any] = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def output_shapes(node: torch.fx.Node) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors an op returns."""
    outputs = node.meta.get("val")
    each = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return tuple(tuple(value.shape) for value in each if isinstance(value, torch.Tensor))


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Path of the innermost module in the traceback of an error, which a double of the model may have raised."""
    met = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    root = next((each for each in met if isinstance(each, nn.Module) and type(each) is type(model)), model)
    paths = {id(module): path for path, module in root.named_modules()}
    where = [path for path in (paths.get(id(each)) for each in met) if path]
    return where[-1] if where else type(model).__name__


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled modules run as they were written: what a compiler has made of them knows real tensors alone."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def silence() -> Iterator[None]:
    """Keep PyTorch's export and fake tensors from printing what the caller gets as an exception anyway."""
    levels, stderr = [logger.level for logger in LOGGERS], sys.stderr
    for logger in LOGGERS:
        logger.setLevel(logging.CRITICAL)
    try:
        sys.stderr = io.StringIO()  # export prints graphs there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr = stderr
        for logger, level in zip(LOGGERS, levels, strict=True):
            logger.setLevel(level)
