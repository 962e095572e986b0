"""A change that is whole or not at all, whatever is raised in it, and at whatever line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from ..machine.signals import Held
from ..machine.surroundings import surroundings
from .assign import assign
from .fake import FakeModel, has_own_arithmetic
from .grid import Grids

T = TypeVar("T")


def whole(act: Callable[[], T], *objects: Any) -> T:
    """Call a function that changes objects; where it raises, all of them are afterwards what they were before.

    Meanwhile signals wait: a Ctrl-C comes when all is changed. Random numbers and whatever else is everybody's are put
    back too, so that the change can be tried again and is the same.

    Args:
        act: the function. What it writes into tensors in place it announces by `about_to_write`.
        objects: networks, runs, modules, optimizers, generators; what they are made of is found from them.
    """
    kept, held = Kept(objects), Held()
    try:
        try:
            held.start()
            _AT_WORK.append(kept)
            with torch.inference_mode(False):  # what is made in here is to be trained
                return act()
        except BaseException:
            kept.put_back()
            raise
        finally:
            _done(kept, held)
    finally:  # once more, should something have been raised in the other
        _done(kept, held)


_AT_WORK: list[Kept] = []
"""Of the changes that are going on, the outermost first."""


def about_to_write(tensors: Iterable[torch.Tensor]) -> None:
    """Say that tensors are given other values in place, before it is done."""
    if _AT_WORK:
        values = [(tensor.data, tensor.detach().clone()) for tensor in tensors]
        for kept in _AT_WORK:
            kept.values += values


def overwrite(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a parameter or buffer another value of the same shape, in place."""
    about_to_write([tensor])
    tensor.data.copy_(value)


def _done(kept: Kept, held: Held) -> None:
    _AT_WORK[:] = [other for other in _AT_WORK if other is not kept]
    held.stop()


class Kept:
    """What objects hold: attributes, containers, tensors by reference. Values are kept where they are written over.

    Found from an object: its attributes and the containers in them; of modules all that is inside them, of optimizers
    their groups and states, and whatever objects of this package hold (caches left out). An attribute of somebody
    else's object is looked at, and not what is in it.

    Attributes:
        values: memory that is written over, and what was there.
    """

    def __init__(self, objects: Iterable[Any]):
        self.values: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._surroundings = surroundings()
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]] = {}
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []
        found = [*objects]
        while found:
            found += self._keep(found.pop())

    def put_back(self) -> None:
        """Have everything hold again what it held."""
        self._surroundings()
        for container, content in self._contents.values():
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for tensor, data, grad, trained in self._tensors.values():
            if not _is_same(tensor, data):
                assign(tensor, data, None)
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(trained).grad = grad
        for data, value in reversed(self.values):
            data.copy_(value)
        for generator, state in self._generators:
            generator.set_state(state)

    def _keep(self, value: Any) -> Iterable[Any]:
        """Keep what an object holds; returns what of that is to be looked at too."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self._tensors and not has_own_arithmetic(value) and value.layout == torch.strided:
                grad = value.grad if isinstance(value, nn.Parameter) else None
                self._tensors[id(value)] = value, value.data, grad, value.requires_grad
            return ()
        if isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
            return ()
        if isinstance(value, tuple):
            return value
        if isinstance(value, (dict, list, set, WeakSet, WeakKeyDictionary)):
            return self._contents_of(value)
        if isinstance(value, (nn.Module, Optimizer)) and id(value.__dict__) in self._contents:
            return ()
        if isinstance(value, nn.Module):
            attributes = self._contents_of(value.__dict__)
            inside = [*value._modules.values(), *value._parameters.values(), *value._buffers.values()]
            return [*inside, *self._shallow(attributes)]
        if isinstance(value, Optimizer):
            attributes = self._contents_of(value.__dict__)
            return [*value.state.values(), *value.param_groups, *self._shallow(attributes)]
        return self._contents_of(value.__dict__) if _is_ours(value) else ()

    def _contents_of(self, container: Any) -> list[Any]:
        """Keep a container's content; returns its values, none where it is known."""
        if id(container) in self._contents:
            return []
        if isinstance(container, (dict, WeakKeyDictionary)):
            content: Any = dict(container.items())
            values = [*content.values()]
        else:
            content = values = [*container]
        self._contents[id(container)] = container, content
        return values

    def _shallow(self, attributes: Iterable[Any]) -> Iterator[Any]:
        """Keep the containers among attributes; of what is in them nothing is looked at."""
        for value in attributes:
            if isinstance(value, (dict, list, set)):
                self._contents_of(value)
            elif isinstance(value, Optimizer) or _is_ours(value):
                yield value


_US = __name__.partition(".")[0]


def _is_ours(value: Any) -> bool:
    """Whether an object is of a class of this package, or of one made from it, and can change."""
    kind = type(value)
    if issubclass(kind, (FakeModel, Grids)):  # what they know more afterwards is true all the same
        return False
    ours = any(base.__module__.partition(".")[0] == _US for base in kind.__mro__)
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    return ours and not frozen and not isinstance(value, type) and hasattr(value, "__dict__")


def _is_same(tensor: torch.Tensor, data: torch.Tensor) -> bool:
    """Whether a tensor still is where it was."""
    return (
        (tensor.shape, tensor.dtype, tensor.device) == (data.shape, data.dtype, data.device)
        and tensor.stride() == data.stride()
        and tensor.data_ptr() == data.data_ptr()
    )
