"""Walk exported graphs op by op, each by its rule; nothing of the model is changed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import OutputKind

from ..dense.double import named_tensors, plain_tensors
from ..dense.program import bind, module_path, op_name, output_shapes, region
from ..dense.subnet import Role, is_inside
from ..errors import TraceError, first_line
from ..machine.placement import on_cpu
from ..machine.private import ConvBase, OpOverload, tree_leaves, tree_map
from .composed import composed_of
from .counting import Counting
from .groups import TracedTensor
from .numbers import Attribute, Dim, Numbers
from .outputs import Output, Outputs, mattering, outputs_of
from .refusals import immovable
from .rules import LAYERS, Axes, Call, Rule, Value, rule_of
from .slots import Axis, Slots

EXCLUDED, READ_BY_EXCLUDED = "excluded by the user", "read by a module the user excluded"
"""Why what the user named stays whole, and what goes with it."""


@dataclass(frozen=True)
class TracedCall:
    """One op, with slots for axes."""

    op: str
    path: str
    outputs: tuple[Value, ...]
    args: dict[str, Any]
    sizes: dict[str, tuple[Axis, ...]]


class Walk:
    """Walks exported graphs of one model, which share the slots of its parameters and buffers."""

    def __init__(self, model: nn.Module, exclude: tuple[str, ...], outputs: Outputs = None):
        self.slots = Slots()
        self.model, self.exclude, self._asked = model, exclude, outputs
        self.outputs: list[Output] = []
        """Those of all graphs read so far."""
        self.layers = {path: LAYERS[type(m)] for path, m in model.named_modules() if type(m) in LAYERS and path}
        """Layers with a rule of their own, by path."""
        self.roles: dict[str, Role] = {}
        self.lengths: dict[str, int] = {}
        self.read_names: set[str] = set()
        self.values: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.counting = Counting(self.slots)
        self.unruled: dict[str, str] = {}
        """Ops without a rule, and the first module that runs each."""
        first: dict[int, str] = {}
        self.plain = plain_tensors(model)
        """Tensors that are plain attributes: those that the forward pass reads are followed as buffers are."""
        everything = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
            *self.plain.items(),
        ]
        self.parameters = {name for name, _ in model.named_parameters()}
        for name, tensor in everything:
            self.aliases[name] = owner = first.setdefault(id(tensor), name)
            if owner == name:
                self.values[name] = self._value(name, tensor, model.get_submodule(name.rpartition(".")[0]))
                if any(name.startswith(path + ".") for path in exclude):
                    self.fix(self.values[name], EXCLUDED)
        self._fix_immovable({name: t for name, t in named_tensors(model).items() if name not in self.plain})

    def _value(self, name: str, tensor: torch.Tensor, owner: nn.Module) -> Value:
        # The taps of a convolution's kernel are never channels, whatever the module does with them first; but those of
        # one input channel may span an axis that is (see `rules.layers`).
        channels = 2 if isinstance(owner, ConvBase) and owner.in_channels > 1 else tensor.ndim
        axes = [
            self.slots.fresh(size) if size > 1 and dim < channels else None for dim, size in enumerate(tensor.shape)
        ]
        return Value(tuple(tensor.shape), tuple(axes), frozenset([name]))

    def named_inputs(self, program: torch.export.ExportedProgram) -> dict[str, str]:
        """The model's parameters and buffers by the names of a program's inputs."""
        signature = program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        return {node: self.aliases[name] for node, name in names.items() if name in self.aliases}

    def unread(self) -> set[str]:
        """Parameters no graph has used so far."""
        return self.parameters - self.read_names

    def keep_where_buffers_are_unread(self) -> None:
        """Keep modules whole that have buffers which no graph reads; call it where training mode, which may, was not
        read."""
        for name, _ in self.model.named_buffers():
            if self.aliases[name] not in self.read_names and max(self.values[self.aliases[name]].shape, default=1) > 1:
                inside = name.rpartition(".")[0]
                for other, value in self.values.items():
                    if not inside or is_inside(other, inside):
                        self.fix(value, "in a module with buffers for training, which was not read")

    @on_cpu
    def tensors(self) -> dict[str, TracedTensor]:
        """All parameters and buffers, of which those no graph reads stay whole, and plain tensors that one reads."""
        for name, value in self.values.items():
            owner = self.model.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, ConvBase) and max(self.roles.get(name, Role("direct")).ins) < 2:
                for axis in value.axes[2:]:  # taps that no convolution has read as channels
                    self.slots.fix(axis, "")
        unread = self.plain.keys() - self.read_names
        tensors = named_tensors(self.model)
        if unread != self.plain.keys():
            self._fix_immovable({name: tensors[name] for name in tensors if name not in unread})
        for name in self.values.keys() - self.read_names - unread:
            self.fix(self.values[name], "not used by the forward pass")
        return {
            name: TracedTensor(value.shape, value.axes, self.roles.get(name, Role("direct")))
            for name, value in self.values.items()
            if name not in unread
        }

    def _fix_immovable(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, reason in immovable(tensors):
            self.fix(self.values[self.aliases[name]], reason)

    def layer_of(self, node: torch.fx.Node) -> tuple[str, str] | None:
        """The layer with a rule of its own that an op is inside of: its path, and which of its runs."""
        stack = node.meta.get("nn_module_stack") or {}
        return next(((path, run) for run, (path, _) in stack.items() if path in self.layers), None)

    def fix(self, value: Value, reason: str) -> None:
        """Keep a tensor whole."""
        for axis in value.axes:
            self.slots.fix(axis, reason)

    @on_cpu
    def read(self, program: torch.export.ExportedProgram, numbers: Numbers) -> tuple[list[TracedCall], frozenset[int]]:
        """Collect the ties of one exported graph; returns its ops, and which outputs do not matter."""
        signature = program.graph_signature
        names = self.named_inputs(program)

        def given(node: torch.fx.Node) -> Value:
            name = names.get(node.name)
            if name is not None and node.users:
                self.read_names.add(name)
            constant = node.name in signature.inputs_to_lifted_tensor_constants
            origin = frozenset[str]() if constant else None
            return self.values[name] if name is not None else _fixed(node.meta.get("val"), origin)

        reading = _Reading(self, numbers)
        results = reading.graph(
            program.graph_module, [given(node) for node in program.graph.nodes if node.op == "placeholder"]
        )
        outputs = outputs_of(program)
        self.outputs += outputs
        matter = mattering(outputs, self._asked)
        returned = [r for s, r in zip(signature.output_specs, results, strict=True) if s.kind == OutputKind.USER_OUTPUT]
        for output, result in zip(outputs, returned, strict=True):
            if output in matter and isinstance(result, Value):
                self.fix(result, str(output))
        reading.compare()
        return reading.calls, frozenset(i for i, output in enumerate(outputs) if output not in matter)


class _Reading:
    """One exported graph on the way through it.

    Attributes:
        calls: its ops so far, without those inside layers that have a rule of their own.
    """

    def __init__(self, walk: Walk, numbers: Numbers):
        self._walk, self._numbers = walk, numbers
        self._made: dict[tuple[int, int], Value] = {}
        self.calls: list[TracedCall] = []
        walk.counting.begin(self._axis_of, numbers.equal)

    def _axis_of(self, dim: Dim) -> Axis:
        """The axis whose size the code has read."""
        if isinstance(dim.tensor, str):
            value = self._walk.values.get(self._walk.aliases.get(dim.tensor, ""))
        else:
            value = self._made.get(dim.tensor)
        return None if value is None else value.axes[dim.axis]

    def compare(self) -> None:
        """Where the code compares an attribute with a size, they stay equal, and unequal ones unequal; one put into a
        tensor stays."""
        for number in self._numbers.values:
            self._walk.counting.counts(number, None)
        for one, other in self._numbers.equal:
            for attribute, size in ((one, other), (other, one)):
                if isinstance(attribute.origin, Attribute) and isinstance(size.origin, Dim):
                    axis = self._axis_of(size.origin)
                    if axis is not None:
                        self._walk.counting.counts(attribute, axis)
        for one, other in self._numbers.equal.unequal:
            for left, right in ((one, other), (other, one)):
                # Where it is not known what one of them counts, the other could come to equal it.
                both = isinstance(left.origin, Attribute) and isinstance(right.origin, Attribute)
                if both and right.origin not in self._walk.counting.attributes:
                    self._walk.counting.counts(left, None)

    def graph(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Sequence[Any]:
        """Walk a graph, and those inside it; returns its outputs."""
        env: dict[torch.fx.Node, Any] = {}
        rest = iter(inputs)
        for layer, run in groupby(module.graph.nodes, self._walk.layer_of):
            nodes = list(run)
            if layer is not None:
                env |= self._layer(layer[0], nodes, env)
                continue
            for node in nodes:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), env.__getitem__)
                if node.op == "placeholder":
                    env[node] = next(rest)
                elif node.op == "get_attr":
                    env[node] = _fixed(getattr(module, node.target), frozenset())
                elif node.op == "output":
                    return args[0] if isinstance(args[0], (tuple, list)) else [args[0]]
                elif node.op != "call_function":
                    raise TraceError(
                        f"a graph node of kind '{node.op}' ({node.target}) cannot be read",
                        where=module_path(node),
                        todo="Exclude the module: trace(..., exclude=[...])",
                    )
                elif node.target is operator.getitem:
                    env[node] = args[0][args[1]]
                elif (position := region(node)) is not None:
                    env[node] = self.graph(args[position], args[position + 1 :])
                else:
                    env[node] = self._op(node, args, kwargs)
        return []

    def _note(self, node: torch.fx.Node, result: Any) -> None:
        """Remember which call made these tensors, for numbers read off them."""
        number = self._numbers.call_of(node)
        if number is not None:
            self._made |= {(number, i): value for i, value in enumerate(tree_leaves(result))}

    def _op(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One op, by its rule or those of its pieces; what an op without either reads and returns stays whole."""
        walk, path, op, rule = self._walk, module_path(node), op_name(node.target), rule_of(node.target)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Value)]
        origin = _origin(inputs)
        excluded = any(is_inside(path, p) for p in walk.exclude)
        if not excluded and rule is None and (composed := composed_of(node)) is not None:
            with suppress(TraceError):  # a rule that does not cover this call of a piece; what it has tied stays so
                return self._composed(node, args, kwargs, composed)
        if excluded or rule is None:
            if not excluded:
                walk.unruled.setdefault(str(node.target), path)
            reason = READ_BY_EXCLUDED if excluded else without_rule(str(node.target))
            for value in inputs:
                walk.fix(value, reason)
            result = tree_map(lambda value: _fixed(value, origin), node.meta.get("val"))
            outputs = tuple(value for value in tree_leaves(result) if isinstance(value, Value))
            self.calls.append(TracedCall(op, path, outputs, {}, {}))
            return result
        assert isinstance(node.target, OpOverload)  # as all ops that have a rule
        bound = bind(node.target, args, kwargs)
        call = self._call(op, bound, output_shapes(node), _used(node), self._numbers.given(node))
        axes = _apply(rule, call, str(node.target), path)
        call.keeps_values()
        results = axes if isinstance(axes, list) else [axes]
        values = [Value(shape, a, origin) for shape, a in zip(call.shapes, results, strict=True)]
        self.calls.append(TracedCall(op, path, tuple(values), bound, call.sizes))
        result = values if isinstance(axes, list) else values[0]
        self._note(node, result)
        return result

    def _composed(
        self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: torch.fx.GraphModule
    ) -> Any:
        """One op without a rule, by those of the ops that it is made of."""
        assert isinstance(node.target, OpOverload)
        bound, given = bind(node.target, args, kwargs), self._numbers.given(node)
        call = self._call(op_name(node.target), bound, output_shapes(node), _used(node), given)
        for number in given or ():
            call.counts(number, None)  # what the pieces do with it is not known
        call.keeps_values()
        calls, self.calls = self.calls, []  # the model runs the op itself
        try:
            values = self.graph(module, [value for value in tree_leaves((args, kwargs)) if isinstance(value, Value)])
        finally:
            self.calls = calls
        self.calls = [*calls, TracedCall(call.op, module_path(node), tuple(values), bound, call.sizes)]
        result = values[0] if isinstance(node.meta["val"], torch.Tensor) else list(values)
        self._note(node, result)
        return result

    def _layer(
        self, path: str, nodes: list[torch.fx.Node], env: Mapping[torch.fx.Node, Any]
    ) -> dict[torch.fx.Node, Any]:
        """One run of a layer that has a rule of its own: what goes in and comes out, by that rule."""
        walk = self._walk
        layer = walk.model.get_submodule(path)
        given = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in nodes)
        inputs = [env[node] for node in given if isinstance(env[node], Value)]
        own = {id(walk.values[name]): name for name in walk.values if is_inside(name, path)}
        args: dict[str, Any] = {}
        for value in sorted(inputs, key=lambda value: id(value) in own):
            name = own[id(value)][len(path) + 1 :] if id(value) in own else f"input_{len(args)}" if args else "input"
            args[name] = value
        outputs = [node for node in nodes if any(user not in nodes for user in node.users)]
        shapes = tuple(shape for node in outputs for shape in output_shapes(node))
        call = self._call(type(layer).__name__, args, shapes, (True,) * len(shapes), None)
        axes = _apply(walk.layers[path], call, type(layer).__name__, path)
        for name in call.sizes:
            if name not in args and not hasattr(layer, name):
                raise TraceError(
                    f"the rule for {call.op} keeps a size that the layer does not have",
                    where=path,
                    expected="an attribute of the layer, or a tensor that goes in",
                    found=name,
                )
        results = axes if isinstance(axes, list) else [axes]
        values = [Value(shape, a, _origin(inputs)) for shape, a in zip(shapes, results, strict=True)]
        self.calls.append(TracedCall(call.op, path, (), vars(layer), call.sizes))
        for node, value in zip(outputs, values, strict=True):
            self._note(node, value)
        return dict(zip(outputs, values, strict=True))

    def _call(
        self,
        op: str,
        args: dict[str, Any],
        shapes: tuple[tuple[int, ...], ...],
        used: tuple[bool, ...],
        given: tuple[int, ...] | None,
    ) -> Call:
        walk = self._walk
        return Call(walk.slots, op, args, shapes, walk.values, walk.roles, walk.lengths, {}, used, given, walk.counting)


def without_rule(op: str) -> str:
    """Why what an op reads stays whole."""
    return f"no rule for the op {op}"


def _apply(rule: Rule, call: Call, op: str, path: str) -> Axes | list[Axes]:
    """What a rule says of a call, checked."""
    try:
        axes = rule(call)
        for each, shape in zip(axes if isinstance(axes, list) else [axes], call.shapes, strict=True):
            if [size if axis is None else len(axis) for axis, size in zip(each, shape, strict=True)] != list(shape):
                sizes = [None if axis is None else len(axis) for axis in each]
                raise ValueError(f"it gives axes of {sizes} to a tensor of {shape}")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        way_out = f"leave the module whole with trace(..., exclude=['{path}'])"
        raise TraceError(
            f"the rule for {op} does not cover this call ({first_line(error)}); "
            f"its arguments are {', '.join(call.args)}",
            where=path or "the model's own forward",
            todo=f"If the rule is yours, correct it (an axis that never changes is None); else "
            f"{way_out if path else 'move the op into a module of its own'} and report it",
        ) from error
    return axes


def _used(node: torch.fx.Node) -> tuple[bool, ...]:
    """For each output of an op, whether the model does anything with it."""
    count = len(output_shapes(node))
    if count == 1:
        return (bool(node.users),)
    taken = [user.args[1] if user.target is operator.getitem else None for user in node.users if user.users]
    return tuple(None in taken or number in taken for number in range(count))


def _origin(inputs: Sequence[Value]) -> frozenset[str] | None:
    """The parameters and buffers that something made of these is computed from."""
    origins = [value.origin for value in inputs]
    return None if None in origins else frozenset[str]().union(*(o for o in origins if o is not None))


def _fixed(value: Any, origin: frozenset[str] | None) -> Any:
    """A tensor none of whose axes can change: an input, a constant."""
    return Value(tuple(value.shape), (None,) * value.ndim, origin) if isinstance(value, torch.Tensor) else value
