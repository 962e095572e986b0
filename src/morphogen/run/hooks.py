"""The hooks of a run: what a step needs is done where the model is called and where the optimizers step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from ..machine.averages import averaged_among
from ..machine.hook import Hook, take_off
from ..machine.private import forward_pre_hooks, hooks_of, is_replica, unwrapped
from ..morph.averages import averaged
from .checkpoints import Followed, FollowedOptimizer
from .part import Part

if TYPE_CHECKING:
    from .run import Run

_ALL: WeakSet[Hooks] = WeakSet()
"""The hooks of every run that has some."""


def check_free(model: nn.Module) -> None:
    """Raise ConfigError where a run is attached to a model, or to a part of it, or to a whole that it is part of."""
    for other in _around(model):
        other.end_if_over()
        if other.on:
            raise ConfigError(
                "a run is attached to this model, or to a part of it, already",
                where=type(model).__name__,
                expected="run.end() of the other run first, or a new model",
                found=other.who,
            )


def _around(model: nn.Module) -> list[Hooks]:
    inside = {*model.modules()}
    return [hooks for hooks in [*_ALL] if not inside.isdisjoint(hooks.model.modules())]


class Hooks:
    """All hooks of one run.

    A step begins with a forward pass in training mode that gradients are kept of, and ends when all optimizers have
    stepped, or some and the next one begins. So gradients may be accumulated, a GradScaler may skip a step, and two
    optimizers may take turns.

    Attributes:
        on: whether the run goes on; one that ended early may still follow states that are loaded.
        who, model: the run's.
    """

    def __init__(self, run: Run, *, steps: bool):
        """`steps` is false for a loop that makes all calls itself."""
        self._run, self._steps, self._stepped, self._handles = run, steps, set[int](), list[Any]()
        self._loading, self._given = list[Any](), dict[int, Any]()
        self._copies: WeakSet[nn.Module] = WeakSet()
        self.on, self.who, self.model = False, run.who, run.network.model
        for other in _around(self.model):  # ended early, it waits for states of other sizes
            other.stop(keep_loading=False)
        for module in self.model.modules():  # a copy, or a file, of a model that another run was attached to
            _take_off(module, lambda owner: True)
        self.start()

    def start(self) -> None:
        """Put all hooks on, where they are off."""
        if self.on:
            return
        run, hook = self._run, partial(Hook, owner=self)
        _ALL.add(self)
        self.on = True
        if not self._steps:
            return
        trees, optimizers = run.followers
        told = hook(lambda *_: None, copied=self._copied)
        self._loading.append(self.model.register_load_state_dict_pre_hook(told))
        self._handles.append(self.model.register_state_dict_pre_hook(hook(self._before_state)))
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(hook(self._before_step)),
                optimizer.register_step_post_hook(hook(self._after_step)),
            ]
            self._loading += FollowedOptimizer(run, optimizer, hook).handles
        for tree in trees:
            self.put_on(averaged(tree, run.network.model))

    def put_on(self, tree: nn.Module) -> None:
        """Follow the calls and the states of the model, or of an averaged copy."""
        hook = partial(Hook, owner=self)
        self._loading += Followed(self._run, tree, hook).handles
        if any(isinstance(each, Hook) and each.owner is self for each in forward_pre_hooks(tree).values()):
            return  # a copy of the model has those of the forward pass from it
        if any(_overrides(part, "before_forward") for part in self._run.assembly):
            # Not compiled: what a compiler made of it would go stale with the first morph.
            before = hook(torch.compiler.disable(self._before_forward))
            self._handles.append(tree.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        elif self._run.ending.has_work:
            self._handles.append(tree.register_forward_pre_hook(hook(self._evaluated), with_kwargs=True))
        if self._returns:
            after = hook(torch.compiler.disable(self._after_forward))
            self._handles.append(tree.register_forward_hook(after, with_kwargs=True))

    @property
    def _returns(self) -> bool:
        return any(_overrides(part, "after_forward") for part in self._run.assembly)

    def averages(self) -> list[nn.Module]:
        """Averages that were made of the model after `attach`, and are not followed yet."""
        followed = {id(averaged(tree, self._run.network.model)) for tree in self._run.followers[0]}
        return averaged_among(copy for copy in [*self._copies] if id(copy) not in followed)

    def _copied(self, memo: Any) -> None:
        copy = memo.get(id(self._run.network.model))
        if copy is not None and not self._run.has_own_state:
            self._copies.add(copy)

    def settle(self) -> None:
        """End a step that only some of the optimizers took part in."""
        if self._stepped:
            self._stepped.clear()
            self._run.steps.after(self._run.steps_now)

    def end_if_over(self) -> None:
        """The run goes on to another one, on every rank."""
        self._run.ending.if_over(trains=False, together=True)

    def forget(self) -> None:
        """Nothing is left of a step that only some of the optimizers took part in: the run is somewhere else."""
        self._stepped.clear()

    def stop(self, *, keep_loading: bool) -> None:
        """The model and its optimizers are left alone again; with `keep_loading` but for states of another size."""
        handles, self._handles, self.on = self._handles, [], False
        if not keep_loading:
            handles, self._loading = [*handles, *self._loading], []
            _ALL.discard(self)
        take_off(handles)
        for copy in [*self._copies]:  # which handles know nothing of
            _take_off(copy, lambda owner: owner is self)
        self._given.clear()

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run
        if run.is_measuring or run.ended:
            return None
        replica = is_replica(model)
        training = (replica or model is run.network.model) and model.training and torch.is_grad_enabled()
        if training and replica:
            self._check_replicated()
        elif training:
            self.settle()
        self._evaluated(model)
        if run.ended:
            return None
        if self._returns:
            self._given[id(model)] = args, kwargs
        return run.steps.before_forward(args, kwargs, training=training)

    def _check_replicated(self) -> None:
        for part in self._run.assembly:
            if _overrides(part, "before_forward") and not part.replicated:
                raise ConfigError(
                    f"DataParallel runs copies of the model, and '{part.name}' follows each step of the one",
                    where=self.who,
                    expected="one device, or DistributedDataParallel under torchrun",
                )

    def _evaluated(self, model: nn.Module, *_: Any) -> None:
        # What is compiled takes no part in this, so that a hook breaks no graph.
        if not (model.training or torch.compiler.is_compiling() or self._run.is_measuring):
            self._run.ending.if_over(trains=False)

    def _before_state(self, model: nn.Module, *_: Any) -> None:
        if model is self.model and not self._run.has_own_state:
            self._run.ending.if_over(trains=model.training)

    def _after_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = self._given.pop(id(model), None)  # without the images that the other hook made smaller
        return None if given is None else self._run.steps.after_forward(output, *given)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_ours(optimizer) or self._run.ended:
            return
        if id(optimizer) in self._stepped:  # the others have their turns
            self.settle()
        if not self._stepped:
            self._run.steps.begins()
            if not _closure(args, kwargs):  # which computes the loss inside the step
                self._run.steps.before()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_ours(optimizer) or self._run.ended:
            return
        if not self._stepped and _closure(args, kwargs):
            self._run.steps.before()
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._run.followers[1]):
            self.settle()

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(optimizer is own for own in self._run.followers[1])


def _overrides(part: Part, method: str) -> bool:
    return getattr(type(part), method) is not getattr(Part, method)


def _closure(args: Any, kwargs: Any) -> bool:
    """Whether an optimizer's step was given a closure; `args` are with the optimizer, or without."""
    return any(callable(each) and not isinstance(each, Optimizer) for each in (*args, *kwargs.values()))


def _take_off(module: nn.Module, which: Callable[[object], bool]) -> None:
    """Take hooks of runs off a module that no handle of ours knows."""
    for hooks in hooks_of(module):
        for key in [
            key for key, hook in hooks.items() if isinstance(unwrapped(hook), Hook) and which(unwrapped(hook).owner)
        ]:
            del hooks[key]
