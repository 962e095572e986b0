"""Read a model once: export it, walk its ops by the rules, derive what may change size.

The exported graph is only read. What runs and what is edited stays the user's own module.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import OutputKind
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import TraceError
from ..fake import Example, FakeModel, as_call, at_least_two, quiet
from ..network import Network
from ..program import bind, export, first_line, module_path, op_name, output_shapes, region
from ..subnet import (
    FIXED,
    AttributeLayout,
    BlockStack,
    ExpectedCall,
    FixedBlock,
    ForwardPath,
    Layout,
    Role,
    Structure,
    TensorLayout,
    is_inside,
    within,
)
from .counting import Counting
from .groups import TracedTensor, derive_groups
from .numbers import Attribute, Dim, Numbers
from .refusals import cannot_export, check_model, immovable
from .residual import residual_branches
from .rules import RULES, Call, Value
from .slots import Axis, Slots
from .stacks import drop_path_of, find_stacks


@torch.inference_mode(False)  # its tensors could not be saved for a backward pass
def trace(model: nn.Module, example: Example, *, exclude: Iterable[str] = ()) -> Network:
    """Find what of a model can change size: its channel groups, its block stacks, its resolution.

    The model is untouched. It is exported in evaluation and in training mode, because auxiliary heads, and
    whatever else the forward pass does in training alone, must fit the smaller network too. Where only the
    training mode cannot be exported, a warning says so.

    Args:
        model: any module that `torch.export` reads; it is the dense network.
        example: an input to call it with: a tensor (batch first), a tuple of arguments, or a dictionary of
            keyword arguments. Only shapes, dtypes and devices matter.
        exclude: module paths to leave whole, such as `("layer4", "fc")`; ops inside need no rule, and blocks
            inside do not leave.

    Returns:
        The network with its groups; all of it alive.

    Raises:
        TraceError: the model cannot be exported or copied, or an excluded path does not exist. What an op
            without a rule reads stays whole; asking for another width names it.
    """
    check_model(model, exclude)
    exclude = tuple(exclude)
    paths = {name for name, _ in model.named_modules()}
    for path in exclude:
        if path not in paths or not path:
            raise TraceError("no module to exclude", where=path or "''", expected="a path of model.named_modules()")
    walk = _Walk(model, exclude)
    program, numbers = _export(model, example, training=False)
    forward = {False: walk.read(program, numbers)}
    parameters = {node: name for node, name in walk.named_inputs(program).items() if name in walk.parameters}
    branches = residual_branches(program, parameters)
    try:
        program, numbers = _export(model, example, training=True)
    except TraceError as error:
        if walk.unread():
            raise
        warnings.warn(f"only the evaluation mode was read: in training mode, {error}", stacklevel=3)
    else:
        forward[True] = walk.read(program, numbers)
    tensors = walk.tensors()
    derived = derive_groups(walk.slots, tensors, walk.counting.attributes)
    layouts = _Layouts(derived.number)
    fake = _fake(model, example)
    stacks, fixed_blocks = _without_excluded(*find_stacks(fake, model, branches), frozenset(exclude))
    inside = frozenset(path for stack in stacks for path in stack.blocks)
    structure = Structure(
        derived.groups,
        derived.pinned,
        stacks,
        tensors={name: TensorLayout(t.shape, layouts(t.axes), t.role) for name, t in tensors.items()},
        attributes=tuple(
            layouts.attributes(model, [c for calls in forward.values() for c in calls], walk.counting.attributes)
        ),
        paths=tuple(ForwardPath(mode, tuple(map(layouts.call, calls))) for mode, calls in forward.items()),
        resolution=_resolution(example),
        fixed_blocks=fixed_blocks,
        drop_path=tuple(drop for drop in drop_path_of(model) if not within(drop.path, inside)),
        unread=walk.unruled,
        exclude=exclude,
        products=derived.products,
    )
    return Network(model, structure, fake)


def _without_excluded(
    stacks: tuple[BlockStack, ...], fixed: tuple[FixedBlock, ...], exclude: frozenset[str]
) -> tuple[tuple[BlockStack, ...], tuple[FixedBlock, ...]]:
    """Stacks inside excluded modules keep all their blocks."""
    inside = [stack for stack in stacks if any(within(path, exclude) for path in stack.blocks)]
    kept = tuple(FixedBlock(path, "excluded by the user") for stack in inside for path in stack.blocks)
    return tuple(stack for stack in stacks if stack not in inside), fixed + kept


def _fake(model: nn.Module, example: Example) -> FakeModel:
    try:
        return FakeModel(model, example)
    except Exception as error:  # whatever the attributes of the model raise
        raise TraceError(
            f"the model cannot be copied ({first_line(error)})",
            where=type(model).__name__,
            expected="a model that copy.deepcopy accepts",
            todo="Tensors kept from an earlier forward pass, locks and open files prevent it",
        ) from error


def _export(model: nn.Module, example: Example, *, training: bool) -> tuple[torch.export.ExportedProgram, Numbers]:
    """The exported model, and where the numbers in it come from."""
    args, kwargs = as_call(example)
    if training:  # batch norm refuses single values in training
        args, kwargs = tree_map(at_least_two, (args, kwargs))
    try:
        with quiet(model, training=training), Numbers(model) as numbers:
            numbers.mark()
            return export(model, args, kwargs), numbers
    except Exception as error:  # whatever the model's own code raises on this input
        raise cannot_export(model, (args, kwargs), error) from error


def _resolution(example: Example) -> tuple[int, int] | None:
    first = next((leaf for leaf in tree_leaves(as_call(example)) if isinstance(leaf, torch.Tensor)), None)
    return (first.shape[2], first.shape[3]) if first is not None and first.ndim == 4 else None


@dataclass(frozen=True)
class _TracedCall:
    """One op, with slots for axes."""

    op: str
    path: str
    outputs: tuple[Value, ...]
    args: dict[str, Any]
    sizes: dict[str, tuple[Axis, ...]]


class _Walk:
    """Walks exported graphs of one model, which share the slots of its parameters and buffers."""

    def __init__(self, model: nn.Module, exclude: tuple[str, ...]):
        self.slots = Slots()
        self.exclude = exclude
        self.roles: dict[str, Role] = {}
        self.read_names: set[str] = set()
        self.values: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.counting = Counting(self.slots)
        self.unruled: dict[str, str] = {}
        """Ops without a rule, and the first module that runs each."""
        first: dict[int, str] = {}
        everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.parameters = {name for name, _ in model.named_parameters()}
        for name, tensor in everything:
            self.aliases[name] = owner = first.setdefault(id(tensor), name)
            if owner == name:
                self.values[name] = self._value(name, tensor, model.get_submodule(name.rpartition(".")[0]))
                if any(name.startswith(path + ".") for path in exclude):
                    self._fix(self.values[name], "excluded by the user")
        for name, reason in immovable(model):
            self._fix(self.values[self.aliases[name]], reason)

    def _value(self, name: str, tensor: torch.Tensor, owner: nn.Module) -> Value:
        # The taps of a convolution's kernel are never channels, whatever the module does with them first.
        channels = 2 if isinstance(owner, _ConvNd) else tensor.ndim
        axes = [
            self.slots.fresh(size) if size > 1 and dim < channels else None for dim, size in enumerate(tensor.shape)
        ]
        return Value(tuple(tensor.shape), tuple(axes), frozenset([name]))

    def named_inputs(self, program: torch.export.ExportedProgram) -> dict[str, str]:
        """The model's parameters and buffers by the names of a program's inputs."""
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        return {node: self.aliases[name] for node, name in names.items() if name in self.aliases}

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

    def _fix(self, value: Value, reason: str) -> None:
        for axis in value.axes:
            self.slots.fix(axis, reason)

    def read(self, program: torch.export.ExportedProgram, numbers: Numbers) -> list[_TracedCall]:
        """Collect the ties of one exported graph; returns its ops."""
        signature = program.graph_signature
        names = self.named_inputs(program)
        made: dict[tuple[int, int], Value] = {}

        def axis_of(dim: Dim) -> Axis:
            name = self.aliases.get(dim.tensor, "") if isinstance(dim.tensor, str) else ""
            value = self.values.get(name) if isinstance(dim.tensor, str) else made.get(dim.tensor)
            return None if value is None else value.axes[dim.axis]

        def given(node: torch.fx.Node) -> Value:
            name = names.get(node.name)
            if name is not None and node.users:
                self.read_names.add(name)
            constant = node.name in signature.inputs_to_lifted_tensor_constants
            origin = frozenset[str]() if constant else None
            return self.values[name] if name is not None else _fixed(node.meta.get("val"), origin)

        calls: list[_TracedCall] = []
        inputs = [given(node) for node in program.graph.nodes if node.op == "placeholder"]
        results = self._read(program.graph_module, inputs, calls, numbers, made, axis_of)
        for spec, result in zip(signature.output_specs, results, strict=True):
            if spec.kind == OutputKind.USER_OUTPUT and isinstance(result, Value):
                self._fix(result, "output of the model")
        for one, other in numbers.equal:  # the code compares an attribute with a size, and expects them to be equal
            for attribute, size in ((one, other), (other, one)):
                if isinstance(attribute.origin, Attribute) and isinstance(size.origin, Dim):
                    axis = axis_of(size.origin)
                    if axis is not None:
                        self.counting.counts(attribute, axis, axis_of)
        return calls

    def _read(
        self,
        module: torch.fx.GraphModule,
        inputs: Sequence[Any],
        calls: list[_TracedCall],
        numbers: Numbers,
        made: dict[tuple[int, int], Value],
        axis_of: Callable[[Dim], Axis],
    ) -> Sequence[Any]:
        """Walk a graph, and those inside it; adds its ops to `calls` and returns its outputs."""
        env: dict[torch.fx.Node, Any] = {}
        rest = iter(inputs)
        for node in module.graph.nodes:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), env.__getitem__)
            if node.op == "placeholder":
                env[node] = next(rest)
            elif node.op == "get_attr":
                env[node] = getattr(module, node.target)
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
                env[node] = self._read(args[position], args[position + 1 :], calls, numbers, made, axis_of)
            else:
                env[node], call = self._call(node, args, kwargs, numbers.given(node), axis_of)
                calls.append(call)
                number = numbers.call_of(node)
                if number is not None:
                    made |= {(number, i): value for i, value in enumerate(tree_leaves(env[node]))}
        return []

    def _call(
        self,
        node: torch.fx.Node,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: tuple[int, ...] | None,
        axis_of: Callable[[Dim], Axis],
    ) -> tuple[Any, _TracedCall]:
        path, op = module_path(node), op_name(node.target)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Value)]
        origins = [value.origin for value in inputs]
        origin = None if None in origins else frozenset[str]().union(*(o for o in origins if o is not None))
        way_out = (
            f"Leave the module whole with trace(..., exclude=['{path}'])"
            if path
            else "Move it into a module of its own"
        )
        excluded = any(is_inside(path, p) for p in self.exclude)
        if excluded or op not in RULES or not isinstance(node.target, torch._ops.OpOverload):
            # What such an op reads and returns stays whole; nothing can be coupled wrongly.
            if not excluded:
                self.unruled.setdefault(
                    str(node.target) if isinstance(node.target, torch._ops.OpOverload) else op, path
                )
            for value in inputs:
                self._fix(value, "read by a module the user excluded" if excluded else f"no rule for the op {op}")
            result = tree_map(lambda value: _fixed(value, origin), node.meta.get("val"))
            outputs = tuple(value for value in tree_leaves(result) if isinstance(value, Value))
            return result, _TracedCall(op, path, outputs, {}, {})
        shapes = output_shapes(node)
        bound = bind(node.target, args, kwargs)
        call = Call(self.slots, op, bound, shapes, self.values, self.roles, {}, given, self.counting, axis_of)
        try:
            axes = RULES[op](call)
            results = axes if isinstance(axes, list) else [axes]
            values = [Value(shape, _fitting(a, shape), origin) for shape, a in zip(shapes, results, strict=True)]
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TraceError(
                f"the rule for {node.target} does not cover this call ({first_line(error)})",
                where=path or "the model's own forward",
                todo=f"{way_out} and report it",
            ) from error
        return values if isinstance(axes, list) else values[0], _TracedCall(op, path, tuple(values), bound, call.sizes)


def _fitting(axes: tuple[Axis, ...], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """The axes a rule returned, if they are of the tensor's shape; raises ValueError otherwise."""
    if [len(axis) if axis is not None else size for axis, size in zip(axes, shape, strict=True)] != list(shape):
        raise ValueError(f"it gives axes of {[None if a is None else len(a) for a in axes]} to a tensor of {shape}")
    return axes


class _Layouts:
    """Turns slots into units, each axis once."""

    def __init__(self, number: torch.Tensor):
        self._number = number
        self._known: dict[int, tuple[Axis, torch.Tensor | None]] = {}

    def __call__(self, axes: Iterable[Axis]) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if axis is None else self._axis(axis) for axis in axes)

    def _axis(self, axis: torch.Tensor) -> torch.Tensor | None:
        if id(axis) not in self._known:
            units = self._number[axis]
            # The axis is kept beside its layout, so that its id is not given to another.
            self._known[id(axis)] = axis, None if bool((units == FIXED).all()) else units
        return self._known[id(axis)][1]

    def call(self, call: _TracedCall) -> ExpectedCall:
        """What is expected of one op at any size."""
        outputs = tuple(Layout(value.shape, self(value.axes)) for value in call.outputs)
        sizes = {
            name: AttributeLayout(call.path, name, number, self(axes))
            for name, axes in call.sizes.items()
            if (number := _whole(call.args.get(name), axes)) is not None
        }
        return ExpectedCall(call.op, call.path, outputs, sizes)

    def attributes(
        self, model: nn.Module, calls: Iterable[_TracedCall], counted: Mapping[Attribute, Axis]
    ) -> Iterable[AttributeLayout]:
        """The sizes that modules keep: those met in the model's code, and those of the names the rules gave."""
        found: dict[tuple[str, str], AttributeLayout] = {}
        for key in dict.fromkeys((attribute.path, attribute.name) for attribute in counted):
            value = getattr(model.get_submodule(key[0]), key[1])
            places = range(len(value)) if isinstance(value, (tuple, list)) else [None]
            axes = self(counted.get(Attribute(*key, place)) for place in places)
            found[key] = AttributeLayout(*key, value, axes)
        for call in calls:
            module = model.get_submodule(call.path)
            for name, size in call.sizes.items():
                number = _whole(getattr(module, name, None), size)
                if number is not None:
                    found.setdefault((call.path, name), AttributeLayout(call.path, name, number, self(size)))
        return [layout for layout in found.values() if any(axis is not None for axis in layout.axes)]


def _whole(value: Any, axes: tuple[Axis, ...]) -> float | tuple[int, ...] | None:
    """`value` if it counts these axes in the dense network, one number or several."""
    if isinstance(value, (int, float)):
        numbers: tuple[Any, ...] = (value,)
    else:
        value = numbers = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(numbers) != len(axes):
        return None
    counts = all(axis is None or len(axis) == number for axis, number in zip(axes, numbers, strict=True))
    return value if counts else None


def _fixed(value: Any, origin: frozenset[str] | None) -> Any:
    """A tensor none of whose axes can change: an input, a constant."""
    return Value(tuple(value.shape), (None,) * value.ndim, origin) if isinstance(value, torch.Tensor) else value
