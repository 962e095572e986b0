"""PyTorch's DistributedDataParallel around a model that has another size now."""

from __future__ import annotations

import gc
from typing import Any

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, TrainingError, first_line
from .private import rebuild
from .ranks import gathered


def wrap_anew(model: nn.Module, *, searching: bool) -> None:
    """Bring every DistributedDataParallel around a model up to date, in place; nothing without a process group.

    A wrapper knows parameters by their sizes, and a loop that is not ours may keep it where nobody else reaches it. So
    it is looked for among all that is of its type, and rebuilds what it knows the way it does when it is unpickled.

    Args:
        model: the wrapped module, or a part of it.
        searching: in an elastic supernet the blocks that are off get no gradient, for which wrappers then look out.

    Raises:
        ConfigError: a wrapper has a process group of its own.
        TrainingError: not all ranks have as many wrappers.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    wrappers, counts = [], []
    for collect in (False, True):  # slow, and rarely needed: one that nobody holds any more has no partner elsewhere
        wrappers.clear()
        wrappers += _around(model, collect)
        counts = gathered(len(wrappers))
        if {*counts} in ({0}, {1}):
            break
    if len({*counts}) > 1:
        raise TrainingError(
            "the ranks have wrapped the model differently",
            where="DistributedDataParallel",
            expected="as many wrappers around it on each rank",
            found=f"{counts}",
        )
    for wrapper in wrappers:
        _rebuild(wrapper, searching)


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


def _rebuild(wrapper: DistributedDataParallel, searching: bool) -> None:
    # A search is over some day, and then the wrapper does again what it was told when it was made.
    asked = vars(wrapper).setdefault("_always_finds_unused", wrapper.find_unused_parameters)
    try:
        rebuild(wrapper, {"find_unused_parameters": asked or searching})
    except RuntimeError as error:
        raise ConfigError(
            f"this wrapper cannot follow the model's size ({first_line(error)})",
            where="DistributedDataParallel",
            expected="the default process group",
        ) from error
