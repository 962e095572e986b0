"""PyTorch's `fully_shard` (FSDP2) around a model that changes size: gathered whole for a morph, then sharded anew.

Between two morphs every rank holds a shard of each parameter and of its optimizer state. A morph needs whole tensors,
and comes a few times in a run. So all that is sharded is gathered, the plain model is changed as ever, and
`fully_shard` is called again with what it was called with. PyTorch has no public way back from `fully_shard`; all that
is not public and used for it is in this file, and `tests/test_sharded.py` is its canary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError

CARRIED = (
    "reduce_grads",
    "all_reduce_grads",
    "reshard_after_backward",
    "gradient_divide_factor",
    "reduce_scatter_unused_params",
    "force_sum_reduction_for_comms",
    "unshard_in_backward",
)
"""Settings of a group of parameters that methods of an FSDPModule make after `fully_shard`."""


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on a model, or on modules in it."""
    return any(map(_is_wrapped, model.modules()))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor; itself where it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore


@contextmanager
def gathered(model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> Iterator[None]:
    """In here a sharded model is the plain one with whole tensors, on every rank; afterwards it is sharded as it was.

    Nothing where the model is not sharded. All ranks have to come. Each holds whole weights, gradients and moments in
    here. The parameters are other objects in here, always the same ones, and new objects afterwards: the optimizers'
    groups and states follow, other lists of them do not.

    Args:
        model: that `fully_shard` was called on; its modules stay the same objects.
        optimizers: of its parameters; they stay the same objects, and so do their groups.

    Raises:
        ConfigError: it was sharded in a way that cannot be repeated; nothing has been changed then.
    """
    if not is_sharded(model):
        yield
        return
    if model not in _KNOWN:
        _KNOWN[model] = _Sharding(model)
    sharding = _KNOWN[model]
    sharding.gather(model, optimizers)
    try:
        yield
    finally:
        sharding.shard(model, optimizers)


@dataclass
class _Call:
    """One call of `fully_shard`."""

    modules: list[nn.Module]
    settings: dict[str, Any]
    carried: dict[str, Any]
    ignored: set[tuple[nn.Module, str]]
    prefetched: tuple[list[nn.Module], list[nn.Module]]


class _Sharding:
    """How a model was sharded, and the parameters that it has while it is not."""

    def __init__(self, model: nn.Module):
        self._calls = list[_Call]()
        self._plain = dict[tuple[nn.Module, str], nn.Parameter]()
        states = list(dict.fromkeys(_state(module) for module in model.modules() if _is_wrapped(module)))
        meshes = [group.mesh_info.mesh for state in states for group in _groups(state)]
        for state in states:
            self._calls.append(_call_of(state, meshes[0]))
        # The inner ones come first, as `fully_shard` wants it.
        self._calls.reverse()

    def gather(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """The plain model: whole tensors in plain parameters, no hooks, its own classes."""
        wrapped = [module for module in model.modules() if _is_wrapped(module)]
        for module in wrapped:
            module.reshard()  # pyright: ignore
        inside = {*model.modules()}
        for call in self._calls:  # settings may have changed since
            if call.modules[0] in inside:
                state = _state(call.modules[0])
                call.carried = _carried(state)
                if inside.issuperset(call.prefetched[0] + call.prefetched[1]):
                    call.prefetched = _prefetched(state)
        places = [(m, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
        values = {parameter: _full(parameter.detach()) for _, _, parameter in places}
        grads = {p: None if p.grad is None else _full(p.grad) for p in values}
        states = [{p: {k: _full(v) for k, v in own.items()} for p, own in _states(o)} for o in optimizers]
        for module in wrapped:
            _unwrap(module)
        found = dict[nn.Parameter, nn.Parameter]()
        for module, name, parameter in places:
            if hasattr(parameter, "to_local"):
                if parameter not in found:
                    found[parameter] = self._plain.setdefault(
                        (module, name), nn.Parameter(local(parameter.detach()).new_empty(0))
                    )
                    _fill(found[parameter], parameter, values[parameter], grads[parameter])
                module._parameters[name] = found[parameter]
        _exchange(optimizers, found, states)

    def shard(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Shard the plain model as it was sharded; what is out of it stays as it is."""
        from torch.distributed.fsdp import fully_shard

        inside = {*model.modules()}
        before = {(module, name): p for module in inside for name, p in module._parameters.items() if p is not None}
        for parameter in before.values():
            parameter.data = parameter.data.contiguous()
        calls = [call for call in self._calls if any(module in inside for module in call.modules)]
        for call in calls:
            modules = [module for module in call.modules if module in inside]
            ignored = {before[place] for place in call.ignored if place in before}
            fully_shard(modules if len(modules) > 1 else modules[0], **call.settings, ignored_params=ignored or None)
            for group in _groups(_state(modules[0])):
                vars(group).update(call.carried)
        for call in calls:
            for setting, modules in zip(("forward", "backward"), call.prefetched, strict=True):
                if modules:
                    module = next(module for module in call.modules if module in inside)
                    getattr(module, f"set_modules_to_{setting}_prefetch")([m for m in modules if m in inside])
        found = dict[nn.Parameter, nn.Parameter]()
        for place, plain in before.items():
            self._plain[place] = plain
            parameter = place[0]._parameters[place[1]]
            if parameter is not None and parameter is not plain and plain not in found:
                found[plain] = parameter
                grad = None if plain.grad is None else _shard_of(plain.grad, parameter)
                vars(parameter).update(_marks(plain))
                parameter.grad = grad
        states = [
            {p: {k: _shard_of(v, found[p]) for k, v in own.items()} for p, own in _states(o) if p in found}
            for o in optimizers
        ]
        _exchange(optimizers, found, states)
        for plain in found:  # the ranks keep no more than their shards
            plain.grad, plain.data = None, plain.data.new_empty(0)


_KNOWN: WeakKeyDictionary[nn.Module, _Sharding] = WeakKeyDictionary()


def _states(optimizer: Optimizer) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    """In the order of the groups, the same on all ranks."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [(parameter, optimizer.state[parameter]) for parameter in held if parameter in optimizer.state]


def _exchange(
    optimizers: Sequence[Optimizer],
    found: Mapping[nn.Parameter, nn.Parameter],
    states: Iterable[Mapping[nn.Parameter, Mapping[str, Any]]],
) -> None:
    """Optimizers take other parameters and their states for those they hold."""
    for optimizer, state in zip(optimizers, states, strict=True):
        for group in optimizer.param_groups:
            group["params"][:] = [found.get(parameter, parameter) for parameter in group["params"]]
        for old, new in found.items():
            if optimizer.state.pop(old, None) is not None and old in state:
                optimizer.state[new] = dict(state[old])


def _fill(plain: nn.Parameter, sharded: nn.Parameter, value: torch.Tensor, grad: torch.Tensor | None) -> None:
    plain.grad = None
    plain.data, plain.requires_grad = value, sharded.requires_grad
    plain.grad = grad
    vars(plain).update(_marks(sharded))


def _marks(parameter: nn.Parameter) -> dict[str, Any]:
    """What others have written on a parameter (that it is not to be decayed, say)."""
    return {name: value for name, value in vars(parameter).items() if not name.startswith("_")}


def _full(value: Any) -> Any:
    """A whole tensor of its own for a sharded one; anything else as it is."""
    return value.full_tensor().contiguous() if hasattr(value, "full_tensor") else value


def _shard_of(value: Any, like: torch.Tensor) -> Any:
    """A sharded tensor for a whole one of a parameter's shape; anything else (a number of steps) as it is."""
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    sharded, mesh = torch.empty_like(like.detach(), dtype=value.dtype), like.device_mesh  # pyright: ignore
    for dim, placement in enumerate(like.placements):  # pyright: ignore
        if placement.is_shard():
            pieces = value.chunk(mesh.size(dim), placement.dim)
            number = mesh.get_local_rank(dim)
            value = pieces[number] if number < len(pieces) else value.narrow(placement.dim, 0, 0)
    sharded.to_local().copy_(value)  # pyright: ignore
    return sharded


def _is_wrapped(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # whoever has wrapped a module has imported it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _state(module: nn.Module) -> Any:
    return module._get_fsdp_state()  # pyright: ignore


def _groups(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)  # PyTorch before 2.12 has one
    return [group for group in ([state._fsdp_param_group] if groups is None else groups) if group is not None]


def _call_of(state: Any, mesh: Any) -> _Call:
    """What `fully_shard` was called with, read off what it made; raises ConfigError where that is more than can be."""
    groups, modules = _groups(state), list(state._modules)
    parameters = [own for group in groups for own in group.fsdp_params]
    settings = {"mesh": mesh, "mp_policy": state._mp_policy, "reshard_after_forward": None}
    for found in (
        "parameters on several meshes" if len(groups) > 1 else "",
        "parameters that are DTensors already (tensor parallelism)" if any(p.is_dtensor for p in parameters) else "",
        "shards of another axis than the first" if any(p.fsdp_placement.dim for p in parameters) else "",
        "other than fully_shard" if any(not hasattr(g.mesh_info, "shard_mesh_size") for g in groups) else "",
        "a policy of precision that differs by parameter"
        if any(p.mp_policy != state._mp_policy for p in parameters)
        else "",
        "hooks or communication of its own" if any(g._all_reduce_hook is not None for g in groups) else "",
    ):
        if found:
            raise ConfigError(
                "the model is sharded in a way that cannot be repeated at another size",
                where=type(modules[0]).__mro__[2].__name__,
                expected="fully_shard on one mesh, along the first axis",
                found=found,
            )
    for group in groups:
        settings |= {"mesh": group.mesh_info.mesh, "offload_policy": group.offload_policy}
        if not state._auto_reshard_after_forward:
            after = group.post_forward_mesh_info
            own = after is not None and after.mesh is group.mesh_info.mesh
            settings["reshard_after_forward"] = own if own or after is None else after.shard_mesh_size
    managed = [m for root in modules for m in root.modules() if not _is_wrapped(m) or m in modules]
    ignored = {(m, n) for m in managed for n, p in m._parameters.items() if not (p is None or hasattr(p, "to_local"))}
    return _Call(modules, settings, _carried(state), ignored, _prefetched(state))


def _carried(state: Any) -> dict[str, Any]:
    return {name: getattr(group, name) for group in _groups(state) for name in CARRIED if hasattr(group, name)}


def _prefetched(state: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    forward, backward = state._states_to_forward_prefetch, state._states_to_backward_prefetch
    return [other._modules[0] for other in forward], [other._modules[0] for other in backward]


def _unwrap(module: nn.Module) -> None:
    """Take off all that `fully_shard` has put on a module."""
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping

    state = _state(module)
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    for group in _groups(state):
        for kind in ("save", "load"):
            for handle in getattr(group, f"_module_to_pre_{kind}_state_dict_hook_handle").values():
                handle.remove()
        for parameter in group.fsdp_params:
            parameter._post_load_hook_handle.remove()
    for each in module.modules():
        for name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            vars(each).pop(name, None)
    for key, names in ((STATE_KEY, None), (REGISTRY_KEY, "fully_shard")):
        entries = vars(module)[key]
        for entry in [entry for entry in entries if names in (None, entry) and _is_ours(entry)]:
            del entries[entry]
    del _module_state_mapping[module]
    module.__class__ = type(module).__mro__[2]  # FSDPNet, FSDPModule, Net


def _is_ours(entry: Any) -> bool:
    return getattr(entry, "__name__", entry) == "fully_shard"
