"""A method put to work in anyone's own training loop."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..cost.memory import StepMemory
from ..dense.fake import Example
from ..dense.images import Images
from ..dense.network import Network
from ..dense.subnet import within
from ..errors import ConfigError
from ..graph.outputs import Outputs
from ..graph.refusals import check_given
from ..graph.trace import read, warn_of_extent
from ..machine.sharded import gathered
from ..morph.averages import several_averages
from ..morph.commit import several
from ..morph.optimizer import check_optimizers
from ..morph.rehearsal import rehearse
from ..morph.tensors import map_tensors
from .assembly import Assembly, Policy
from .followers import check_sharded
from .hooks import check_free
from .run import Run
from .values import parameter_names

if TYPE_CHECKING:
    from ..search.candidates import Probe


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Policy,
    *,
    example: Example,
    epochs: int,
    start_epoch: int | None = None,
    steps_per_epoch: int | None = None,
    ema: Any = None,
    probe: Probe | None = None,
    exclude: Iterable[str] = (),
    outputs: Outputs = None,
    images: Images = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    hooks: bool = True,
) -> Run:
    """Trace a model and put a method to work on it; the loop stays the user's.

        run = morphogen.attach(model, optimizer, NetworkExpansion(width=0.5), example=images, epochs=90)
        for epoch in range(90):
            run.begin_epoch(epoch)
            ...  # as ever; where the method prunes, run.penalised(loss).backward()

    Hooks on the model and its optimizers do what every step needs, and the run's end takes them off. Validation
    needs nothing. A script's own checkpoints work: `model.state_dict()` says its size, and brings the network to that
    size where it is loaded, after this call; `optimizer.state_dict()` too.

    Frozen parameters (`requires_grad=False`) stay frozen and keep their values bit for bit: channels and blocks that
    come back have those they had here, whatever the operators, since nothing would ever train what these fill in. (A
    table that follows the resolution is interpolated.) What is frozen here and trained later grows like the rest; to
    keep a frozen part whole, name it in `exclude`.

    Args:
        model: the dense network, on its device; it is changed in place and ends dense, or as it was pruned. After
            `fully_shard`, all ranks call this (see docs/sharded.md).
        optimizer: its optimizer or optimizers, made from `model.parameters()` or those of them that are trained, or
            from a whole that the model is a part of (`attach(detector.backbone, optimizer_of_the_detector, ...)`); each
            keeps its own groups. A step of a throwaway copy tells what it keeps of a parameter: one that wraps another
            (Lookahead), or keeps more than scalars and tensors of the parameter's shape (Adafactor, Shampoo, LBFGS),
            is refused.
        method: such as `NetworkExpansion(width=0.5, stages=5)`.
        example: an input of the size used in training; see `trace`.
        epochs: length of the run.
        start_epoch: the epoch to begin with; the network has its size at once then. By default the first
            `begin_epoch` says, and nothing changes before.
        steps_per_epoch: optimizer steps in an epoch (with `batch_size` images each); for a momentum network whose
            horizon is a share of its stage.
        ema: averages of the model that are there already, to change along, of any kind that `morph` takes; copies made
            of it later are found (see `Run.follow`).
        probe: loss and data that a method which searches compares its candidates with.
        exclude: module paths to leave whole.
        outputs: the model's outputs that matter, see `trace`.
        images: its arguments whose resolution changes, see `trace`.
        batch_size: images in a step of the dense network, on each rank; for a method with a mini-batch. The loop
            then takes `run.batch_size` images and multiplies its learning rate with `run.lr_scale` in every epoch.
        autocast: the type of autocast in training, for the memory that such a method reckons with.
        hooks: false leaves it to the loop to call `run.begin_step(images)`, `run.end_step()` and `run.end()`.

    Raises:
        ConfigError: the method does not fit the run's length, the model, its outputs or the first batch; the model is
            attached already; it is sharded, or wrapped, in a way that cannot follow.
        TraceError, MorphError: see `trace` and `morph`; also where a later stage could not run, or an optimizer could
            not follow it.
    """
    epochs = _count("epochs", epochs)
    steps_per_epoch = None if steps_per_epoch is None else _count("steps_per_epoch", steps_per_epoch)
    batch_size = None if batch_size is None else _count("batch_size", batch_size)
    if isinstance(method, (str, type)) or not callable(getattr(method, "parts", None)):
        raise ConfigError("not a method", expected="one such as morphogen.GrowOnce()", found=repr(method)[:80])
    if autocast is not None and not isinstance(autocast, torch.dtype):
        raise ConfigError("autocast is no type", expected="one such as torch.bfloat16", found=repr(autocast)[:80])
    optimizers = several(optimizer, Optimizer, "optimizer")
    check_given(model, exclude)
    check_free(model)
    assembly = Assembly(method)
    averages = several_averages(ema, model)
    check_sharded(model, assembly, averages)
    with gathered(model, optimizers):
        network = read(model, example, exclude, outputs, images)
        assembly.plan(network, epochs)
        if assembly.prunes or any(each.channels != network.dense.channels for each in assembly.possible):
            warn_of_extent(network)
        _check_optimizers(network, optimizers, assembly)
        _warn_of_frozen(network, assembly)
        rehearse(network, assembly.possible, assembly.depth_operator)
        copies = len(averages) + sum(part.copies for part in assembly)
        run = Run(
            network,
            method,
            assembly,
            optimizers,
            averages,
            epochs=epochs,
            memory=StepMemory(network, optimizers, copies, autocast),
            steps_per_epoch=steps_per_epoch,
            first_batch=batch_size,
            probe=probe,
            hooked=hooks,
        )
    if start_epoch is not None:
        run.begin_anew()
        try:
            run.begin_epoch(start_epoch)
        except Exception:
            run.detach()
            raise
    return run


def _check_optimizers(network: Network, optimizers: Sequence[Optimizer], assembly: Assembly) -> None:
    """Refuse, before the first stage and not after it, optimizers that cannot follow what is to come."""
    names, dense = parameter_names(network.model), network.dense
    possible, prunes = assembly.possible, assembly.prunes
    if prunes or any(replace(each, resolution=dense.resolution) != dense for each in possible):
        check_optimizers(optimizers, names, names.values(), network.begins)
    elif any(each != dense for each in possible):
        changing = {name for each in possible for name in map_tensors(network, dense, each)}
        check_optimizers(optimizers, names, changing, network.begins)


def _count(name: str, value: Any) -> int:
    """A whole number from 1, of any kind that counts; a share of a batch, or a truth value, is none."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name} out of range", expected="a whole number, at least 1", found=repr(value))
    return number


def _warn_of_frozen(network: Network, assembly: Assembly) -> None:
    """Warn where modules that are frozen whole (a teacher, a momentum encoder) become smaller, and so compute something
    else; not where what leaves is to come back as it was."""
    if assembly.restores:
        return
    dense, structure, changing = network.dense, network.structure, set[str]()
    for each in assembly.possible:
        absent = frozenset(structure.absent(each))
        changing |= map_tensors(network, dense, replace(each, resolution=dense.resolution)).keys()
        changing |= {name for name in structure.tensors if within(name, absent)}
    frozen = list[str]()
    for path, module in network.model.named_modules():
        weights = {f"{path}.{name}": p for name, p in module.named_parameters() if p.ndim > 1}
        whole = len(weights) > 1 and not any(p.requires_grad for p in module.parameters())
        if path and whole and not within(path, frozenset(frozen)) and not changing.isdisjoint(weights):
            frozen.append(path)
    if frozen:
        more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
        warnings.warn(
            f"{frozen[0]}{more}: frozen, and smaller in some stages, where it computes something else; exclude="
            f"[{frozen[0]!r}] keeps it whole. Where it is an average of another module: attach(model.other, ..., "
            "ema=model.average) changes both alike",
            stacklevel=3,
        )
