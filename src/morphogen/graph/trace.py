"""Read a model once: export it, walk its ops by the rules, derive what may change size.

The exported graph is only read. What runs and what is edited stays the user's own module.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import TraceError
from ..network import Example, Network, as_call, quiet, silence
from ..subnet import Role, Structure
from .groups import TracedAttribute, TracedTensor, derive_groups
from .rules import RULES, Call, Value
from .slots import Axis, Slots


def trace(model: nn.Module, example: Example, *, exclude: Iterable[str] = ()) -> Network:
    """Find what of a model can change size: its channel groups.

    The model is untouched. It is exported in evaluation mode; where that leaves parameters unread (auxiliary
    heads), once more in training mode.

    Args:
        model: any module that `torch.export` reads; it is the dense network.
        example: an input to call it with: a tensor (batch first), a tuple of arguments, or a dictionary of
            keyword arguments. Only shapes, dtypes and devices matter.
        exclude: module paths to leave whole, such as `("layer4", "fc")`; ops inside need no rule.

    Returns:
        The network with its groups; all of it alive.

    Raises:
        TraceError: the model cannot be exported with this example, an op has no rule, or an excluded path
            does not exist.
    """
    exclude = tuple(exclude)
    paths = {name for name, _ in model.named_modules()}
    for path in exclude:
        if path not in paths or not path:
            raise TraceError("no module to exclude", where=path or "''", expected="a path of model.named_modules()")
    walk = _Walk(model, exclude)
    args, kwargs = as_call(example)
    with quiet(model, training=False):
        walk.read(_export(model, args, kwargs))
    if walk.unread():
        # Heads that only training runs. Batch norm refuses single values there, so one image becomes two.
        args, kwargs = tree_map(_at_least_two, (args, kwargs))
        with quiet(model, training=True):
            walk.read(_export(model, args, kwargs))
    groups, pinned, tensors, attributes = derive_groups(walk.slots, walk.tensors(), walk.attributes(model))
    return Network(model, Structure(groups, pinned, (), tensors, attributes, _resolution(args)), example)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    try:
        with silence(), torch.random.fork_rng(devices=[]):
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:  # whatever the model's own code raises on this input
        text = str(error).strip().splitlines()
        raise TraceError(
            f"torch.export cannot read this model with this example ({type(error).__name__}: "
            f"{text[0] if text else 'no message'})",
            where=type(model).__name__,
            expected="an example the model accepts and a forward pass without data-dependent control flow",
            found="inputs of shape "
            + ", ".join(str(tuple(t.shape)) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)),
            todo="Call model(example) yourself first; where the model branches on data, trace a submodule",
        ) from error


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _resolution(args: tuple[Any, ...]) -> tuple[int, int] | None:
    first = next((a for a in args if isinstance(a, torch.Tensor)), None)
    return (first.shape[2], first.shape[3]) if first is not None and first.ndim == 4 else None


class _Walk:
    """Walks exported graphs of one model, which share the slots of its parameters and buffers."""

    def __init__(self, model: nn.Module, exclude: tuple[str, ...]):
        self.slots = Slots()
        self.exclude = exclude
        self.roles: dict[str, Role] = {}
        self.sizes: dict[tuple[str, str], tuple[Axis, ...]] = {}
        self.read_names: set[str] = set()
        self.values: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.parameters = {name for name, _ in model.named_parameters()}
        for name, tensor in everything:
            self.aliases[name] = owner = first.setdefault(id(tensor), name)
            if owner == name:
                axes = tuple(self.slots.fresh(size) if size > 1 else None for size in tensor.shape)
                self.values[name] = Value(tuple(tensor.shape), axes, name)
                if any(name.startswith(path + ".") for path in exclude):
                    self._fix(self.values[name], "excluded by the user")

    def unread(self) -> set[str]:
        """Parameters no graph has used so far."""
        return self.parameters - self.read_names

    def tensors(self) -> dict[str, TracedTensor]:
        """All parameters and buffers; those no graph reads stay whole."""
        for name in self.values.keys() - self.read_names:
            self._fix(self.values[name], "not used by the forward pass")
        return {
            name: TracedTensor(value.shape, value.axes, self.roles.get(name, Role("direct")))
            for name, value in self.values.items()
        }

    def attributes(self, model: nn.Module) -> list[TracedAttribute]:
        """The sizes that modules really keep under the names the rules gave, as they are in the dense network."""
        found = []
        for (path, name), axes in self.sizes.items():
            value = getattr(model.get_submodule(path), name, None)
            numbers = (value,) if isinstance(value, int) else value
            if not isinstance(value, (int, tuple)) or not isinstance(numbers, tuple) or len(numbers) != len(axes):
                continue
            if all(axis is None or len(axis) == number for axis, number in zip(axes, numbers, strict=True)):
                found.append(TracedAttribute(path, name, value, axes))
        return found

    def _fix(self, value: Value, reason: str) -> None:
        for axis in value.axes:
            self.slots.fix(axis, reason)

    def read(self, program: torch.export.ExportedProgram) -> None:
        """Collect the ties of one exported graph."""
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        env: dict[torch.fx.Node, Any] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                name = self.aliases.get(names.get(node.name, ""))
                if name is not None and node.users:
                    self.read_names.add(name)
                env[node] = self.values[name] if name is not None else _constant(node.meta.get("val"))
            elif node.op == "call_function":
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = self._call(node, args, kwargs)
            elif node.op == "output":
                for value in tree_leaves(torch.fx.map_arg(node.args, env.__getitem__)):
                    if isinstance(value, Value) and value.name is None:
                        self._fix(value, "output of the model")
            else:
                raise TraceError(
                    f"a graph node of kind '{node.op}' ({node.target}) cannot be read",
                    where=_path(node),
                    todo="Exclude the module: trace(..., exclude=[...])",
                )

    def _call(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]]
        path = _path(node)
        outputs = node.meta.get("val")
        if any(path == p or path.startswith(p + ".") for p in self.exclude):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Value):
                    self._fix(value, "read by a module the user excluded")
            return tree_map(_constant, outputs)
        op = _op_name(node.target)
        rule = RULES.get(op)
        if rule is None:
            raise TraceError(
                f"no rule for the op {node.target}",
                where=path or "the model's own forward",
                expected="an op of morphogen's rule table",
                todo=f"Leave the module whole with trace(..., exclude=['{path or 'PATH'}']), "
                "or add a rule: one function, see CONTRIBUTING.md",
            )
        assert isinstance(node.target, torch._ops.OpOverload)
        multiple = isinstance(outputs, (list, tuple))
        shapes = tuple(tuple(t.shape) for t in (outputs if multiple else [outputs]) if isinstance(t, torch.Tensor))
        bound = _bind(node.target, args, kwargs)
        call = Call(self.slots, path, op, bound, shapes, self.roles, self.sizes)
        try:
            axes = rule(call)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TraceError(
                f"the rule for {node.target} does not cover this call ({error})",
                where=path,
                todo=f"Leave it whole with trace(..., exclude=['{path}']) and report it",
            ) from error
        if isinstance(axes, list):
            return [Value(shape, a) for shape, a in zip(shapes, axes, strict=True)]
        return Value(shapes[0], axes)


def _path(node: torch.fx.Node) -> str:
    """Path of the innermost module whose forward ran this op."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values()) if path), "")


def _op_name(target: Any) -> str:
    """`aten.relu_.default` -> `relu`; ops of other namespaces keep theirs."""
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    namespace, _, name = target._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace == "aten" else f"{namespace}.{name}"


def _bind(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
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


def _constant(value: Any) -> Any:
    """A tensor none of whose axes can change: an input, a constant."""
    return Value(tuple(value.shape), (None,) * value.ndim) if isinstance(value, torch.Tensor) else value
