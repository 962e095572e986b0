"""Read a model once: export it, walk its ops by the rules, derive what may change size.

The exported graph is only read. What runs and what is edited stays the user's own module.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.fx.traceback import preserve_node_meta

from ..dense.double import has_hooks
from ..dense.fake import Example, FakeModel, as_call, at_least_two
from ..dense.images import Images
from ..dense.kept import kept
from ..dense.network import Network
from ..dense.picked import AllPicked
from ..dense.program import export, is_open, rule_name
from ..dense.subnet import (
    FIXED,
    AttributeLayout,
    BlockStack,
    ExpectedCall,
    FixedBlock,
    ForwardPath,
    Layout,
    Structure,
    TensorLayout,
    within,
)
from ..errors import TraceError, first_line
from ..machine.private import tree_map
from .alike import drop_path_of
from .groups import Groups, derive_groups
from .norms import batch_norms
from .numbers import Attribute, Numbers
from .outputs import Outputs, check_outputs
from .refusals import cannot_export, check_model, warn_of_hooks
from .residual import Branches
from .rules.table import OF_INPUT
from .slots import Axis
from .stacks import find_stacks
from .walk import EXCLUDED, READ_BY_EXCLUDED, TracedCall, Walk, without_rule
from .watch import watch


def trace(
    model: nn.Module,
    example: Example,
    *,
    exclude: Iterable[str] = (),
    outputs: Outputs = None,
    images: Images = None,
) -> Network:
    """Find what of a model can change size: its channel groups, its block stacks, its resolution.

    The model is untouched: what is read is a double of it, whose tensors have no values. The double is exported in
    evaluation mode, and in training mode where the ops that run there are others, because auxiliary heads, and whatever
    else the forward pass does in training alone, must fit the smaller network too. Where only the training mode cannot
    be exported, a warning says so. Hooks around forward passes are left out, unless the model cannot run without them.
    An op without a rule keeps what it reads whole; a warning names it.

    Tensors that modules keep as plain attributes follow like buffers, where the forward pass reads them; they are in
    no `state_dict`, and come back with the values they have now.

    Args:
        model: any module that `torch.export` reads; it is the dense network.
        example: an input to call it with: a tensor (batch first), a tuple of arguments, or a dictionary of
            keyword arguments. Only shapes, dtypes and devices matter.
        exclude: module paths to leave whole, such as `("layer4", "fc")`; ops inside need no rule, and blocks
            inside do not leave.
        outputs: those that matter, by name, key or position (`"logits"`, `0`, `["loss", "decoder.logits"]`): what a
            loss or a metric reads keeps its size. The others come out at the size that runs. By default all matter,
            but for hidden states, attentions and caches beside others, and the last hidden state, what is pooled from
            it, and embeddings beside a loss, logits, predictions or a sample.
        images: the arguments whose resolution changes, by name or position (`"pixel_values"`). By default the largest
            floating-point (N, C, H, W), or (N, C, D, H, W) whose D stays, and those at a whole fraction of its size.

    Returns:
        The network with its groups; all of it alive.

    Raises:
        TraceError: the model cannot be exported or copied, or an excluded path or an output does not exist.
    """
    network = read(model, example, exclude, outputs, images)
    warn_of_extent(network)
    return network


@torch.inference_mode(False)  # its tensors could not be saved for a backward pass
def read(
    model: nn.Module, example: Example, exclude: Iterable[str] = (), outputs: Outputs = None, images: Images = None
) -> Network:
    """As `trace`, for those who know whether the width will change at all."""
    check_model(model, exclude)
    exclude = tuple(exclude)
    paths = {name for name, _ in model.named_modules()}
    for path in exclude:
        if path not in paths or not path:
            raise TraceError("no module to exclude", where=path or "''", expected="a path of model.named_modules()")
    walk = Walk(model, exclude, outputs)
    fake, program, numbers = _first_export(model, example, images)
    if not fake.hooks:
        warn_of_hooks(model)
    forward = {False: walk.read(program, numbers)}
    parameters = {node: name for node, name in walk.named_inputs(program).items() if name in walk.parameters}
    branches, norms = Branches(program, parameters), batch_norms(program, walk.named_inputs(program))
    seen = watch(fake)
    if seen.stale:
        warnings.warn(
            f"{seen.stale[0]}: an earlier call of the model has left it for other inputs than the example, and it does "
            "not follow where sizes change. Trace a model that has not been called, or call it with the example first",
            stacklevel=4,
        )
    if seen.record.same_in_training():
        forward[True] = forward[False]
    elif seen.record.draws and not walk.unread():  # a smaller network would draw fewer, and so run something else
        warnings.warn(
            "only the evaluation mode was read: in training mode the model draws random numbers of Python or NumPy, by "
            "which it may choose what it runs",
            stacklevel=4,
        )
    else:
        try:
            program, numbers = _export(fake, example, training=True)
        except TraceError as error:
            if walk.unread():
                raise
            warnings.warn(f"only the evaluation mode was read: in training mode, {error}", stacklevel=4)
            walk.keep_where_buffers_are_unread()
        else:
            forward[True] = walk.read(program, numbers)
    check_outputs(walk.outputs, outputs)
    if fake.picked is not None and fake.picked.branched and (unread := walk.unread()):
        raise TraceError(
            "the code asks whether a mask picks anything, and does not run this where it does",
            where=min(unread),
            expected="a forward pass that runs all of its layers where masks pick all positions",
            todo="Run both ways and choose with torch.where, or trace a submodule",
        )
    tensors = walk.tensors()
    derived = derive_groups(walk.slots, tensors, walk.counting.attributes, walk.parameters)
    layouts = _Layouts(derived.number)
    expected = {id(made): tuple(map(layouts.call, made)) for made, _ in forward.values()}
    stacks, fixed_blocks = _without_excluded(
        *find_stacks(fake, seen, model, branches, walk.read_names), frozenset(exclude)
    )
    inside = frozenset(path for stack in stacks for path in stack.blocks)
    structure = Structure(
        derived.groups,
        derived.pinned,
        stacks,
        tensors={
            name: layout
            for name, t in tensors.items()
            for layout in [TensorLayout(t.shape, layouts(t.axes), t.role)]
            if name not in walk.plain or any(axis is not None for axis in layout.axes)
        },
        attributes=tuple(
            layouts.attributes(model, [c for calls, _ in forward.values() for c in calls], walk.counting.attributes)
        ),
        paths=tuple(ForwardPath(mode, expected[id(made)], free) for mode, (made, free) in forward.items()),
        resolution=next(iter(fake.images.values()), None),
        fixed_blocks=fixed_blocks,
        drop_path=tuple(drop for drop in drop_path_of(model) if not within(drop.path, inside)),
        unread=_unread(walk, derived),
        exclude=exclude,
        products=derived.products,
        norms=norms,
        layers=tuple(walk.layers),
        outputs=tuple(map(str, walk.outputs)),
        caches=seen.caches,
    )
    return Network(model, structure, fake)


def warn_of_extent(network: Network) -> None:
    """Warn where less than half of a network can change its width, and nothing else has said so."""
    structure, found = network.structure, network.extent
    if found.share > 1 / 2 and not structure.unread and found.reason not in (EXCLUDED, READ_BY_EXCLUDED, OF_INPUT):
        aside = len(structure.outputs) > 1 and found.reason in structure.outputs
        todo = ". Name the outputs that matter with outputs=..., and the others come out narrower" if aside else ""
        warnings.warn(f"less than half of the model can change its width: {found}{todo}", stacklevel=3)


def _without_excluded(
    stacks: tuple[BlockStack, ...], fixed: tuple[FixedBlock, ...], exclude: frozenset[str]
) -> tuple[tuple[BlockStack, ...], tuple[FixedBlock, ...]]:
    """Stacks inside excluded modules keep all their blocks."""
    inside = [stack for stack in stacks if any(within(path, exclude) for path in stack.blocks)]
    kept = tuple(FixedBlock(path, "excluded by the user") for stack in inside for path in stack.blocks)
    return tuple(stack for stack in stacks if stack not in inside), fixed + kept


def _unread(walk: Walk, derived: Groups) -> dict[str, str]:
    """The ops without a rule that keep something whole, and the first module that runs each; a warning names them."""
    pins: dict[str, list[str]] = {}
    for pinned in derived.pinned:
        pins.setdefault(pinned.reason, []).append(pinned.axis)
    found = {op: path for op, path in walk.unruled.items() if without_rule(op) in pins}
    for op, path in found.items():
        axes = pins[without_rule(op)]
        warnings.warn(
            f"{path or 'the forward of the model'}: {without_rule(op)}, so that what it reads stays whole: {axes[0]}"
            + (f" and {len(axes) - 1} more" if len(axes) > 1 else "")
            + f". Add a rule, one function under @morphogen.rule({rule_name(op)!r}) (see docs/extending.md)",
            stacklevel=5,  # the caller of `trace` or `attach`; `read` is decorated
        )
    return found


def _first_export(
    model: nn.Module, example: Example, images: Images
) -> tuple[FakeModel, torch.export.ExportedProgram, Numbers]:
    """A double of the model, exported in evaluation mode.

    It is without hooks, which may do anything to anybody (count, print, log), unless the model cannot run without them:
    some libraries read hidden states by hooks.
    """
    fake = _fake(model, example, images, hooks=False)
    try:
        return fake, *_export(fake, example, training=False)
    except TraceError:
        if not has_hooks(model):
            raise
        with_hooks = _fake(model, example, images, hooks=True)
        try:
            return with_hooks, *_export(with_hooks, example, training=False)
        except TraceError:
            pass
        raise


def _fake(model: nn.Module, example: Example, images: Images, *, hooks: bool) -> FakeModel:
    try:
        return FakeModel(model, example, images, hooks=hooks)
    except TraceError:
        raise
    except Exception as error:  # whatever the attributes of the model raise
        raise TraceError(
            f"the model cannot be copied ({first_line(error)})",
            where=type(model).__name__,
            expected="a model that copy.deepcopy accepts",
            todo="Locks and open files prevent it",
        ) from error


def _export(fake: FakeModel, example: Example, *, training: bool) -> tuple[torch.export.ExportedProgram, Numbers]:
    """The exported model, and where the numbers in it come from.

    What is picked by a mask has a size that only its values tell. Where that is in the way, masks pick all.
    """
    found, error = None, None
    try:
        found = _exported(fake, example, training=training)
    except TraceError as raised:
        error = raised
    if fake.picked is None and (found is None or is_open(found[0])):
        fake.picked = AllPicked()
        with suppress(TraceError):
            return _exported(fake, example, training=training)
        fake.picked = None
    if found is None:
        assert error is not None
        raise error
    return found


def _exported(fake: FakeModel, example: Example, *, training: bool) -> tuple[torch.export.ExportedProgram, Numbers]:
    """The same, with masks as they are."""
    args, kwargs = as_call(example)
    if training:  # batch norm refuses single values in training
        args, kwargs = tree_map(at_least_two, (args, kwargs))
    model = fake.double(training=training)
    try:
        for configurations in (True, False):
            numbers = Numbers(model)
            with suppress(Exception), preserve_node_meta(), fake.reading():
                # The code may look a number up in a table, where one with an origin is not found.
                numbers.mark(configurations=configurations)
                program = export(model, args, kwargs)
                if not numbers.written:
                    return program, numbers
            model = fake.double(training=training)
            if not numbers.configured:
                break
        with fake.reading():
            return export(model, args, kwargs), Numbers(model)
    except Exception as error:  # whatever the model's own code raises on this input
        raise cannot_export(model, (args, kwargs), error) from error


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

    def call(self, call: TracedCall) -> ExpectedCall:
        """What is expected of one op at any size."""
        outputs = tuple(Layout(value.shape, self(value.axes)) for value in call.outputs)
        sizes = {
            name: AttributeLayout(call.path, name, number, self(axes))
            for name, axes in call.sizes.items()
            if (number := _whole(call.args.get(name), axes)) is not None
        }
        return ExpectedCall(call.op, call.path, outputs, sizes)

    def attributes(
        self, model: nn.Module, calls: Iterable[TracedCall], counted: Mapping[Attribute, Axis]
    ) -> Iterable[AttributeLayout]:
        """The sizes that modules keep: those met in the model's code, and those of the names the rules gave."""
        found: dict[tuple[str, str], AttributeLayout] = {}
        for key in dict.fromkeys((attribute.path, attribute.name) for attribute in counted):
            value = kept(model.get_submodule(key[0]), key[1])
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
