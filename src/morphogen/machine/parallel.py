"""PyTorch's DistributedDataParallel around a model that has another size now."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, TrainingError
from .private import fixed_settings, joined, rebuild
from .ranks import gathered

OF_BUCKETS = ("error_dict", "p_memory_dict", "q_memory_dict")
"""What PowerSGD keeps of each bucket of gradients; its buckets are others after a morph, so that it begins anew."""


def check_wrappers(model: nn.Module, *, searching: bool) -> None:
    """Refuse, before anything is changed, what a DistributedDataParallel around a model could not do at another size.

    Args:
        model: the wrapped module, or a part of it.
        searching: whether it is an elastic supernet now, see `wrap_anew`.

    Raises:
        ConfigError: a setting, or a communication hook, that cannot follow; its process group leaves out some ranks,
            which would train another network.
    """
    _check(_around(model, collect=False) if _connected() else (), searching)


def wrap_anew(model: nn.Module, *, searching: bool) -> None:
    """Bring every DistributedDataParallel around a model up to date, in place; nothing without a process group.

    A wrapper knows parameters by their sizes, and a loop that is not ours may keep it where nobody else reaches it. So
    it is looked for among all that is of its type, and rebuilds what it knows the way it does when it is unpickled.

    Args:
        model: the wrapped module, or a part of it.
        searching: in an elastic supernet the blocks that are off get no gradient, for which wrappers then look out.

    Raises:
        ConfigError: see `check_wrappers`.
        TrainingError: not all ranks have as many wrappers.
    """
    if not _connected():
        return
    wrappers = _around(model, collect=False)
    _check(wrappers, searching)
    counts = gathered(len(wrappers))
    if {*counts} not in ({0}, {1}):  # slow, and rarely so: one that nobody holds any more has no partner elsewhere
        wrappers.clear()  # or they would be held here
        wrappers += _around(model, collect=True)
        counts = gathered(len(wrappers))
    if len({*counts}) > 1:
        raise TrainingError(
            "the ranks have wrapped the model differently",
            where="DistributedDataParallel",
            expected="as many wrappers around it on each rank",
            found=f"{counts}",
        )
    for wrapper in wrappers:
        _rebuild(wrapper, searching)


def joins(model: nn.Module) -> bool:
    """Whether the ranks may have different numbers of batches, and some of them none any more."""
    return _connected() and any(map(joined, _around(model, collect=False)))


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Wrappers around a model take no part in what is computed in here: gradients stay each rank's own."""
    wrappers = _around(model, collect=False) if _connected() else []
    synchronised = [wrapper.require_forward_param_sync for wrapper in wrappers]
    try:
        with ExitStack() as stack:
            for wrapper in wrappers:
                stack.enter_context(wrapper.no_sync())
            yield
    finally:  # a forward pass without synchronisation leaves the buffers of the next one alone too
        for wrapper, before in zip(wrappers, synchronised, strict=True):
            wrapper.require_forward_param_sync = before


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _around(model: nn.Module, collect: bool) -> list[Any]:
    """The wrappers around a model, those that nobody holds any more among them unless they are collected first."""
    kinds = [DistributedDataParallel]
    for kind in kinds:
        kinds += kind.__subclasses__()
    frozen = gc.get_freeze_count()
    gc.unfreeze()  # or what a program has frozen would not be seen
    if collect:
        gc.collect()
    known = gc.get_referrers(*kinds)  # every object refers to its type
    if frozen:
        gc.freeze()
    return [each for each in known if type(each) in kinds and any(part is model for part in each.modules())]


def _check(wrappers: Iterable[Any], searching: bool) -> None:
    """Raises ConfigError, see `check_wrappers`."""
    for wrapper in wrappers:
        for found, todo in _fixed(wrapper, searching):
            raise ConfigError(
                "this wrapper cannot follow the model's size",
                where=type(wrapper).__name__,
                expected="one that knows its parameters by their sizes alone",
                found=found,
                todo=todo,
            )


def _fixed(wrapper: DistributedDataParallel, searching: bool) -> Iterator[tuple[str, str]]:
    """What of a wrapper cannot follow, and what to do instead."""
    size, everybody = distributed.get_world_size(wrapper.process_group), distributed.get_world_size()
    if size != everybody:
        todo = "Give it the default process group, or one of all ranks; a morph is the same on all of them"
        yield f"a process group of {size} of {everybody} ranks", todo
    yield from fixed_settings(wrapper)
    ignored = wrapper.parameters_to_ignore
    for name, parameter in wrapper.module.named_parameters():
        if name in ignored and parameter.requires_grad:
            yield f"{name}, which is trained and ignored", "Let it average all that is trained, or freeze that"
    for hook, state in _hooks(wrapper):
        names = {*getattr(state, "__dict__", ()), *getattr(type(state), "__slots__", ())}.difference(OF_BUCKETS)
        if _tensors_in([state, *(getattr(state, name, None) for name in names)]):
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            yield f"the hook {name}, whose state holds tensors", "Use a hook without, or PyTorch's PowerSGD"
        elif searching and _compresses(state):  # PyTorch's own calls of both cross, and the ranks wait for ever
            yield "PowerSGD in a search, which needs find_unused_parameters", "Register it when the search is over"


def _hooks(wrapper: DistributedDataParallel) -> Sequence[tuple[Any, Any]]:
    """Those that communicate gradients, each with its state."""
    return vars(wrapper).get("_comm_hooks", ())


def _compresses(state: Any) -> bool:
    """Whether it is the state of PowerSGD."""
    return any(hasattr(state, name) for name in OF_BUCKETS)


def _tensors_in(values: Sequence[Any]) -> bool:
    """Whether there are tensors among values, or in lists and dictionaries among them."""
    return any(
        isinstance(value, torch.Tensor)
        or (isinstance(value, dict) and _tensors_in([*value.values()]))
        or (isinstance(value, (list, tuple, set)) and _tensors_in([*value]))
        for value in values
    )


def _rebuild(wrapper: DistributedDataParallel, searching: bool) -> None:
    # A search is over some day, and then the wrapper does again what it was told when it was made.
    asked = {name: getattr(wrapper, name) for name in ("find_unused_parameters", "static_graph")}
    asked = vars(wrapper).pop("_asked_before_the_search", asked)
    if searching:
        vars(wrapper)["_asked_before_the_search"] = asked
    for _, state in _hooks(wrapper):
        if _compresses(state):
            for name in OF_BUCKETS:
                getattr(state, name, {}).clear()
            state.iter = 0  # it waits until the buckets are settled before it compresses
    rebuild(wrapper, {"find_unused_parameters": True, "static_graph": False} if searching else asked)
