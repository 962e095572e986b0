"""Try a sub-network out before anything is changed: does the model's code do what its traced axes say?

Sizes that stand in a model's code (a view, a slice, a number of heads) do not follow a morph. The sub-network
is therefore run, or exported, on fake tensors, and every op's output shape compared with what the axes predict; an
output of the right shape alone would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from ..dense.fake import at_least_two, make_ready
from ..dense.network import Network, shapes_of
from ..dense.program import bind, export, failing_module, op_name
from ..dense.record import TRAINING, Ran, Record, exported, on_numbers
from ..dense.subnet import ExpectedCall, ForwardPath, SubNetwork, within
from ..errors import MorphError, first_line
from ..machine.private import OpOverload, tree_map

SILENT = {"contiguous", "detach", "_assert_tensor_metadata"}
"""Ops that are there only where they do something (a single head is contiguous in any order), or in an export alone."""

WAY_OUT = "Leave the module whole: trace(..., exclude=['its path'])"


def try_out(network: Network, target: SubNetwork) -> None:
    """Run `target` on fake tensors and compare it with the trace; once for each sub-network.

    Raises:
        MorphError: the model's own code does not work at this size, or does something else there.
    """
    if target in network.fits:
        return
    with torch.inference_mode(False), torch.enable_grad():
        at_dense_resolution = replace(target, resolution=network.structure.resolution)
        if at_dense_resolution not in network.fits:
            _compare_paths(network, at_dense_resolution)
            network.fits.add(at_dense_resolution)
        # Blocks that run at one depth run at any: a resolution is tried with the first depth that asks for it.
        at_dense_depth = replace(target, blocks=network.dense.blocks)
        if target.resolution != network.structure.resolution and at_dense_depth not in network.fits:
            _compare_outputs(network, target)
            network.fits.add(at_dense_depth)
    network.fits.add(target)


def _fingerprint(path: ForwardPath) -> tuple[Any, ...]:
    """What a forward pass does with axes that can change, the batch left out."""
    return tuple(
        (call.op, call.path, tuple(layout.shape[1:] for layout in call.outputs), tuple(call.sizes))
        for call in path.calls
        if any(axis is not None for layout in call.outputs for axis in layout.axes)
    )


def _compare_paths(network: Network, target: SubNetwork) -> None:
    """Record every forward pass; where that is not what the trace expects, an export has the last word."""
    sketch = network.sketch(target)
    heard: dict[tuple[Any, ...], tuple[ExpectedCall, ...]] = {}
    # Where both modes run the same ops, on all or on what can change, one speaks for both.
    for path in {id(path.calls): path for path in reversed(network.structure.paths)}.values():
        if heard.setdefault(_fingerprint(path), path.calls) is path.calls and not _is_recorded(
            network, sketch, path, target
        ):
            _compare_export(network, network.sketch(target), path, target)


def _inputs(network: Network, path: ForwardPath) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = network.fake.inputs(network.structure.resolution)
    return tree_map(at_least_two, inputs) if path.training else inputs


def _is_recorded(network: Network, fake: nn.Module, path: ForwardPath, target: SubNetwork) -> bool:
    """Whether a forward pass on fake tensors runs what is expected."""
    try:
        make_ready(fake, training=path.training)
        _compare(network, path, Record(network.fake, fake, _inputs(network, path)).ops, target)
    except Exception:  # whatever the model's own code raises without numbers in its inputs
        return False
    return True


def _compare_export(network: Network, fake: nn.Module, path: ForwardPath, target: SubNetwork) -> None:
    try:
        make_ready(fake, training=path.training)
        program = export(fake, *_inputs(network, path))
    except Exception as error:  # whatever the model's own code raises at this size
        raise _cannot_run(fake, error) from error
    _compare(network, path, exported(program), target)


def _compare(network: Network, path: ForwardPath, ran: Iterable[Ran], target: SubNetwork) -> None:
    alive, absent = network.structure.alive_mask(target), frozenset(network.structure.absent(target))
    skipped = absent | frozenset(network.structure.layers)
    there = (
        call
        for call in path.calls
        if not (within(call.path, skipped) or _says_nothing(call.op, [layout.shape for layout in call.outputs]))
    )
    found = (op for op in ran if not (within(op.path, skipped) or _says_nothing(op_name(op.target), op.shapes)))
    for expected, op in zip_longest(there, found):
        if expected is None or op is None or op_name(op.target) != expected.op:
            raise MorphError(
                "the model takes another path at this size",
                where=(op.path if op is not None else expected.path if expected is not None else "")
                or "the model's own forward",
                expected=expected.op if expected is not None else "the end",
                found=op_name(op.target) if op is not None else "the end",
                todo=WAY_OUT,
            )
        _compare_call(expected, op, alive)


def _says_nothing(op: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an op may be there or not: it is one of `SILENT`, or makes single numbers, such as a count of batches."""
    return op in SILENT or (len(shapes) > 0 and on_numbers(shapes))


def _compare_call(expected: ExpectedCall, op: Ran, alive: torch.Tensor) -> None:
    shapes = tuple(layout.alive_shape(alive) for layout in expected.outputs)
    if shapes != op.shapes:
        raise MorphError(
            f"{expected.op} has sizes written into the model's code",
            where=expected.path or "the model's own forward",
            expected=f"an output of shape {_list(shapes)}",
            found=_list(op.shapes),
            todo=WAY_OUT,
        )
    if expected.sizes:
        assert isinstance(op.target, OpOverload)
        bound = bind(op.target, op.args, op.kwargs)
        for name in (own for own in expected.sizes if own not in TRAINING):
            layout = expected.sizes[name]
            value = layout.value(alive)
            found = tuple(bound[name]) if isinstance(value, tuple) else bound[name]
            if found != value:
                raise MorphError(
                    f"{expected.op} is given another {name} by the model's code than its meaning asks for",
                    where=expected.path or "the model's own forward",
                    expected=f"{value}",
                    found=f"{found}",
                    todo=WAY_OUT,
                )


def _compare_outputs(network: Network, target: SubNetwork) -> None:
    """At another resolution the trace says nothing of sizes in space; the dense network does."""
    # Where both modes run the same ops, one speaks for both.
    for path in {id(path.calls): path for path in network.structure.paths}.values():
        _compare_outputs_in(network, target, path.training, path.free)


def _compare_outputs_in(network: Network, target: SubNetwork, training: bool, free: frozenset[int]) -> None:
    model = network.fake.dense
    try:
        dense = network.outputs_at(target.resolution, training=training)
        model = network.sketch(target)
        make_ready(model, training=training)
        output = shapes_of(network.fake.run(model, target.resolution, batch=2 if training else None))
    except Exception as error:  # whatever the model's own code raises at this size
        raise _cannot_run(model, error) from error
    expected, found = (
        [shape for i, shape in enumerate(shapes) if i not in free and shape is not None] for shapes in (dense, output)
    )
    if expected != found:
        raise MorphError(
            "the model gives an output of another shape at this size",
            expected=_list(expected),
            found=_list(found),
            todo=WAY_OUT,
        )


def _list(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _cannot_run(model: nn.Module, error: Exception) -> MorphError:
    return MorphError(
        f"the model cannot run at this size ({first_line(error)})",
        where=failing_module(model, error),
        expected="sizes read from the tensors, or kept by PyTorch's own layers",
        todo=WAY_OUT,
    )
