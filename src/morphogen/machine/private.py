"""What of PyTorch is not public and used all the same, in one place; `tests/test_private.py` has a canary for each.

A module's own dictionaries (`_parameters`, `_buffers`, `_modules`) are read where they are needed: they are what
`nn.Module` is made of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import config as _compiler
from torch._dynamo import eval_frame as _frames
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters as _counters
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.fx import config as _graphs
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNormToday
from torch.optim import Optimizer
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _disable_current_modes as for_real
from torch.utils._pytree import LeafSpec, TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "ASSIGNS",
    "COMPILER_ERRORS",
    "Constants",
    "ConvBase",
    "LeafSpec",
    "TorchDispatchMode",
    "TreeSpec",
    "as_parameter",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "DropoutBase",
    "FakeTensorMode",
    "new_fake",
    "HigherOrderOperator",
    "NormBase",
    "OpOverload",
    "SpectralNormToday",
    "backward_hook_tables",
    "for_real",
    "compilations",
    "compilations_allowed",
    "compiler_stance",
    "compiling",
    "fixed_settings",
    "forward_hook_tables",
    "forward_hooks",
    "forward_pre_hooks",
    "graphs_only",
    "modes_from_here",
    "hooks_of",
    "in_backward",
    "is_fake",
    "joined",
    "more_compilations",
    "set_compiler_stance",
    "ops_seen",
    "power_iteration",
    "rebuild",
    "storage_key",
    "unwrapped",
    "without_step_hooks",
]

COMPILER_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)
"""What a model that cannot be compiled raises."""

ASSIGNS = "assign_to_params_buffers"
"""In the metadata that a module's state is loaded with: whether its tensors take the places of the module's own."""


def compilations() -> int:
    """How many graphs this process has compiled."""
    return _counters["stats"]["unique_graphs"]


@contextmanager
def compiling(room: int) -> Iterator[None]:
    """Settings under which a network that changes size is compiled and called; afterwards they are what they were.

    Args:
        room: compilations of the same code on top of PyTorch's own limit, after which it raises instead of running
            uncompiled from then on.
    """
    changed = {
        "recompile_limit": _compiler.recompile_limit + room,
        "accumulated_recompile_limit": _compiler.accumulated_recompile_limit + room,
        "fail_on_recompile_limit_hit": True,
        # Parameters stay the same objects when they change size; without this, torch 2.11 takes them for unchanged.
        "skip_tensor_guards_with_matching_dict_tags": False,
    }
    with _compiler.patch(changed):
        yield


def compilations_allowed() -> int:
    """Of the same code, before PyTorch gives up."""
    return _compiler.recompile_limit


def more_compilations(count: int) -> None:
    """Raise, or lower, the number of compilations of the same code before PyTorch gives up."""
    _compiler.recompile_limit += count


def compiler_stance() -> Any:
    """How compiled models run in this process: see `torch.compiler.set_stance`."""
    return _frames._stance


def set_compiler_stance(stance: Any) -> None:
    """Have them run as when `compiler_stance` said so."""
    _frames._set_stance(stance)


def modes_from_here() -> Callable[[], None]:
    """What leaves the modes of PyTorch (`with FakeTensorMode():` and the like) that this thread enters from here on."""
    stacks = _get_current_function_mode_stack, _get_current_dispatch_mode_stack
    before = [len(stack()) for stack in stacks]

    def leave() -> None:
        for stack, depth in zip(stacks, before, strict=True):
            while len(modes := stack()) > depth:
                modes[-1].__exit__(None, None, None)

    return leave


@contextmanager
def graphs_only() -> Iterator[None]:
    """An export makes graphs alone: no Python code of them, and no stack traces, which together are a third of its
    cost."""
    settings: Any = _graphs
    traces = getattr(settings, "do_not_emit_stack_traces", None)  # older PyTorch has no such setting
    if traces is not None:
        settings.do_not_emit_stack_traces = True
    try:
        with _use_lazy_graph_module(True):
            yield
    finally:
        if traces is not None:
            settings.do_not_emit_stack_traces = traces


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no values."""
    return isinstance(tensor, FakeTensor)


def new_fake(like: torch.Tensor, shape: tuple[int, ...], mode: FakeTensorMode) -> torch.Tensor:
    """What `like.detach().new_empty(shape)` gives in the mode, without asking every op what it would do."""
    if type(like) is not FakeTensor:
        with mode:
            return like.detach().new_empty(shape)
    return FakeTensor(mode, torch.empty(shape, dtype=like.dtype, device="meta"), like.device)


def as_parameter(fake: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """What `nn.Parameter(fake, requires_grad)` gives, made of the fake tensor itself: no op is asked, which takes ten
    times as long."""
    fake.requires_grad_(requires_grad)
    fake._is_param = True  # type: ignore[attr-defined]
    return fake


def storage_key(storage: torch.UntypedStorage) -> int:
    """What tells storages apart; a fake one has no address."""
    return storage._cdata


def in_backward() -> bool:
    """Whether gradients are being computed, so that what runs now runs anew for them."""
    return torch._C._current_graph_task_id() != -1


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """A module's own hooks behind its forward pass."""
    return module._forward_hooks


def forward_pre_hooks(module: nn.Module) -> dict[int, Any]:
    """A module's own hooks before its forward pass."""
    return module._forward_pre_hooks


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """All that hooks a module: its forward pass, and its state as it is saved and loaded."""
    return [
        module._forward_pre_hooks,
        module._forward_hooks,
        module._state_dict_pre_hooks,
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
    ]


def is_replica(module: nn.Module) -> bool:
    """Whether it is one of the copies that `DataParallel` makes for a single forward pass, a thread each."""
    return getattr(module, "_is_replica", False)


def unwrapped(hook: Any) -> Any:
    """A hook itself, where PyTorch keeps it in a wrapper that knows its module."""
    return getattr(hook, "hook", hook)


def forward_hook_tables(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """A module's own hooks around its forward pass, as the module keeps them."""
    return module._forward_pre_hooks, module._forward_hooks


def backward_hook_tables(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """A module's own hooks around its backward pass, as the module keeps them."""
    return module._backward_pre_hooks, module._backward_hooks


class Constants(TorchDispatchMode):
    """While it is active inside a mode of fake tensors, ops on real tensors alone run for real.

    So numbers can be read out of real tensors. Nothing is drawn at random, nor written to tensors of more entries than
    `WRITABLE`.
    """

    WRITABLE = 2**16

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op for real, or in the mode of fake tensors."""
        if any(isinstance(argument, FakeTensor) for argument in args):  # nearly always, and quick to see
            return func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        real = tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        writes = func._schema.is_mutable and any(tensor.numel() > self.WRITABLE for tensor in tensors)
        if not real or writes or torch.Tag.nondeterministic_seeded in func.tags:
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return func(*args, **(kwargs or {}))


class _BeforeDispatch(SchemaCheckMode):
    """Sees ops where `torch.export` does, before they are taken apart. There PyTorch lets modes of its own kinds in
    alone; of the one it is derived from, this one has nothing else."""

    def __init__(self, note: Callable[[OpOverload, tuple[Any, ...], dict[str, Any], Any], None]):
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result


@contextmanager
def ops_seen(note: Callable[[OpOverload, tuple[Any, ...], dict[str, Any], Any], None]) -> Iterator[None]:
    """Have a function told of every op that runs, as `torch.export` sees it: op, arguments, and what it returned."""
    with _BeforeDispatch(note), enable_python_dispatcher():
        yield


def power_iteration(norm: SpectralNormToday, weight: torch.Tensor) -> None:
    """One step of the estimate of a weight's singular vectors."""
    norm._power_method(norm._reshape_weight_to_matrix(weight), 1)


def without_step_hooks(optimizer: Optimizer) -> None:
    """Take all hooks of the step off an optimizer."""
    optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = OrderedDict(), OrderedDict()


RENEWED = ("reducer", "logger", "_module_parameters", "modules_buffers", "named_module_buffers")
"""What a wrapper keeps of its module's tensors, and makes anew."""


def bare_step(optimizer: Optimizer) -> Any:
    """The function that takes a step with an optimizer of this class, without anybody's hooks."""
    step: Any = type(optimizer).step
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def rebuild(wrapper: DistributedDataParallel, settings: Mapping[str, Any]) -> None:
    """Have a wrapper learn its module's parameters anew, the way it does when it is unpickled; its hooks stay.

    Args:
        wrapper: around a module that has changed size, see `fixed_settings`.
        settings: of the wrapper, where they change too.
    """
    kept = {name: value for name, value in vars(wrapper).items() if name not in RENEWED}
    # The first step of a new static graph asks for its reduction at the end; a wrapper that has done so asks no more.
    kept |= {"_static_graph_delay_allreduce_enqueued": False, "_has_rebuilt_buckets": False, **settings}
    kept["_module_parameters"] = [
        p for name, p in wrapper.module.named_parameters() if name not in wrapper.parameters_to_ignore
    ]
    wrapper.__setstate__(kept)  # with its own process group, which takes the place of the default one
    hooks, wrapper._comm_hooks = wrapper._comm_hooks, []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


def joined(wrapper: DistributedDataParallel) -> bool:
    """Whether a wrapper is or was inside its `join`, where ranks may have different numbers of batches."""
    return wrapper._join_config.enable


def fixed_settings(wrapper: DistributedDataParallel) -> Iterator[tuple[str, str]]:
    """What `rebuild` cannot renew of a wrapper, and what to do instead."""
    if wrapper.mixed_precision is not None:  # a second copy of every parameter
        yield "mixed_precision", "Use torch.autocast"
    if wrapper._delay_all_reduce_params:  # views of one buffer
        yield "delay_all_reduce_named_params", "Let it average all parameters alike"
    if wrapper._use_python_reducer:
        yield "the Python reducer of torch.compile", 'Set torch._dynamo.config.optimize_ddp = "ddp_optimizer"'
    if any(hasattr(parameter, "_in_backward_optimizers") for parameter in wrapper.module.parameters()):
        yield "an optimizer that steps in the backward pass", "Step after it"
    held = vars(wrapper)
    if held.get("reducer") and wrapper._get_ddp_logging_data().get("comm_hook") and not held.get("_comm_hooks"):
        yield "a communication hook of PyTorch's own that is not kept", "Use register_comm_hook"
