"""The hooks of a run: what a step needs is done where the model is called and where the optimizers step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from ..machine.averages import averaged_among, twins_of
from ..machine.private import forward_pre_hooks
from ..morph.commit import averaged
from .checkpoints import Followed, FollowedOptimizer
from .part import Part

if TYPE_CHECKING:
    from .run import Run

_ATTACHED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Models that a run is attached to, and the run's method."""


def check_free(model: nn.Module) -> None:
    """Raise ConfigError where a run is attached to a model, or to a part of it, or to a whole that it is part of."""
    inside = {*model.modules()}
    for other, method in [*_ATTACHED.items()]:
        if not inside.isdisjoint(other.modules()):
            raise ConfigError(
                "a run is attached to this model, or to a part of it, already",
                where=type(model).__name__,
                expected="run.end() of the other run first, or a new model",
                found=method,
            )


class Hook:
    """A function on a model or an optimizer. Copies of the model share it; a file of the whole model leaves it out."""

    def __init__(self, act: Callable[..., Any] | None, copied: Callable[[Any], None] = lambda memo: None):
        """`copied` is told of every deep copy that the hook is part of, by `deepcopy`'s memo."""
        self._act, self._copied = act, copied

    def __call__(self, *args: Any) -> Any:
        """What the function does; nothing, where the hook comes out of a file."""
        return None if self._act is None else self._act(*args)

    def __deepcopy__(self, memo: Any) -> Hook:
        self._copied(memo)
        return self

    def __reduce__(self) -> Any:
        return Hook, (None,)


class Hooks:
    """All hooks of one run.

    A step begins with a forward pass in training mode that gradients are kept of, and ends when all optimizers have
    stepped, or some and the next one begins. So gradients may be accumulated, a GradScaler may skip a step, and two
    optimizers may take turns.

    """

    def __init__(self, run: Run, *, steps: bool):
        """`steps` is false for a loop that makes all calls itself."""
        self._run, self._stepped, self._handles = run, set[int](), list[Any]()
        self._loading, self._given = list[Any](), dict[int, Any]()
        self._copies: WeakSet[nn.Module] = WeakSet()
        model = run.network.model
        _ATTACHED[model] = run.who
        if not steps:
            return
        trees, optimizers = run.followers
        self._copies.update(twins_of(model))
        told = Hook(lambda *_: None, self._copied)
        self._loading.append(model.register_load_state_dict_pre_hook(told))
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(Hook(self._before_step)),
                optimizer.register_step_post_hook(Hook(self._after_step)),
            ]
            self._loading += FollowedOptimizer(run, optimizer, Hook).handles
        for tree in trees:
            self.put_on(averaged(tree))

    def put_on(self, tree: nn.Module) -> None:
        """Follow the calls and the states of the model, or of an averaged copy."""
        self._loading += Followed(self._run, tree, Hook).handles
        if any(isinstance(hook, Hook) for hook in forward_pre_hooks(tree).values()):
            return  # a copy of the model has those of the forward pass from it
        if any(_overrides(part, "before_forward") for part in self._run.assembly):
            # Not compiled: what a compiler made of it would go stale with the first morph.
            before = Hook(torch.compiler.disable(self._before_forward))
            self._handles.append(tree.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        if any(_overrides(part, "after_forward") for part in self._run.assembly):
            after = Hook(torch.compiler.disable(self._after_forward))
            self._handles.append(tree.register_forward_hook(after, with_kwargs=True))

    def averages(self) -> list[nn.Module]:
        """Averages that were made of the model after `attach`, and are not followed yet."""
        followed = {id(averaged(tree)) for tree in self._run.followers[0]}
        return averaged_among(copy for copy in [*self._copies] if id(copy) not in followed)

    def _copied(self, memo: Any) -> None:
        copy = memo.get(id(self._run.network.model))
        if copy is not None and not self._run.has_own_state:
            self._copies.add(copy)

    def settle(self) -> None:
        """End a step that only some of the optimizers took part in."""
        if self._stepped:
            self._stepped.clear()
            self._run.after_step()

    def stop(self, *, keep_loading: bool) -> None:
        """The model and its optimizers are left alone again; with `keep_loading` but for states of another size."""
        handles, self._handles = self._handles, []
        if not keep_loading:
            handles, self._loading = [*handles, *self._loading], []
        for handle in handles:
            handle.remove()
        _ATTACHED.pop(self._run.network.model, None)

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run
        if run.is_measuring or run.ended:
            return None
        training = model is run.network.model and model.training and torch.is_grad_enabled()
        if training:
            self.settle()
        self._given[id(model)] = args, kwargs
        return run.before_forward(args, kwargs, training=training)

    def _after_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = self._given.pop(id(model), None)  # without the images that the other hook made smaller
        return None if given is None else self._run.after_forward(output, *given)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._stepped and self._is_ours(optimizer):
            self._run.before_step()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_ours(optimizer):
            return
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._run.followers[1]):
            self.settle()

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(optimizer is own for own in self._run.followers[1])


def _overrides(part: Part, method: str) -> bool:
    return getattr(type(part), method) is not getattr(Part, method)
