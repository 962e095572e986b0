"""What cannot be a dense network, told before the model is touched; and why an export failed, in one line."""

from __future__ import annotations

import dis
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..dense.fake import has_own_arithmetic
from ..dense.program import failing_module
from ..dense.rewritten import rewriters
from ..errors import TraceError, first_line
from ..machine.private import forward_hooks, forward_pre_hooks, tree_leaves

WRAPPERS = {
    "DistributedDataParallel": "Trace model.module; a run's wrapper follows by itself",
    "DataParallel": "Trace model.module; the wrapper may stay around it",
    "FullyShardedDataParallel": "Trace the model as it was before; sharded parameters cannot change size",
    "FSDPModule": "Trace the model as it was before fully_shard; morphogen.attach takes it sharded",
    "ScriptModule": "Trace the module it was made from, and script it after training",
}
"""Classes around a model, by name, so that none of their packages must be there; and the way out."""

REWRITING_HOOKS = {
    "WeightNorm": "Use torch.nn.utils.parametrizations.weight_norm",
    "SpectralNorm": "Use torch.nn.utils.parametrizations.spectral_norm",
    "BasePruningMethod": "Call torch.nn.utils.prune.remove(module, name) first",
}
"""Hooks that write a parameter before each forward pass. Those of `rewriters` are refused on recurrent layers alone."""

CAUSES = (
    (
        ("data-dependent", "DataDependent", "DynamicOutputShape"),
        "a forward pass that does not branch on the values in its tensors",
        "Use torch.where or torch.cond, or trace a submodule without the branch",
    ),
    ((".numpy()",), "PyTorch's ops alone", "Make the rest a torch.library.custom_op, or trace a submodule without it"),
    (
        ("not a known type", "Unsupported input type"),
        "tensors, numbers and strings in tuples, lists and dictionaries",
        "Register the type with torch.export.register_dataclass or torch.utils._pytree.register_pytree_node",
    ),
    (
        ("constant's list",),
        "parameters that the forward pass does not write to",
        "Keep what changes in a buffer, or write to it outside forward",
    ),
    (
        ("has no attribute",),
        "a model that copy.deepcopy copies whole (without __slots__)",
        "Call model(example) and copy.deepcopy(model)(example) yourself first",
    ),
    (("PackedParams",), "layers that can train", "Trace and train the model first, and quantise it afterwards"),
    (("same device",), "model and example on one device", "Call example.to(device) or model.to(device)"),
    (("Inference tensors",), "ordinary tensors", "Use torch.no_grad in place of torch.inference_mode"),
)
"""What an export's error says, what was expected, and what to do."""


def check_given(model: nn.Module, exclude: Iterable[str]) -> None:
    """Raise TraceError for what is no model, and no list of paths."""
    if not isinstance(model, nn.Module):
        raise TraceError("not a model", expected="a torch.nn.Module", found=repr(model)[:80])
    if isinstance(exclude, str):
        raise TraceError("exclude is one string", expected="several module paths", todo=f"Write exclude=[{exclude!r}]")


def check_model(model: nn.Module, exclude: Iterable[str]) -> None:
    """Raise TraceError for models that cannot change size."""
    check_given(model, exclude)
    for path, module in model.named_modules():
        _check_module(path or type(module).__name__, module)
    for name, tensor in _tensors(model).items():
        _check_tensor(name, tensor)


def warn_of_hooks(model: nn.Module) -> None:
    """Warn where hooks that are not read may hide what a model computes."""
    changing = [path or type(module).__name__ for path, module in model.named_modules() if _may_change_values(module)]
    if changing:
        warnings.warn(
            f"{changing[0]}: forward hooks are not read; if one changes what the module is given or returns, a morph "
            f"would be wrong: make it a module. Hooks that return None are safe ({len(changing)} modules have others)",
            stacklevel=5,  # the caller of `trace` or `attach`; `read` is decorated
        )


def _check_module(path: str, module: nn.Module) -> None:
    for kind in type(module).__mro__:
        if kind.__name__ in WRAPPERS and kind.__module__.startswith("torch."):
            raise TraceError(
                f"the module is wrapped ({kind.__name__})",
                where=path,
                expected="the plain module",
                todo=WRAPPERS[kind.__name__],
            )
    read = {} if isinstance(module, nn.RNNBase) else dict(rewriters(module))
    for hook in [hook for key, hook in forward_pre_hooks(module).items() if key not in read]:
        for kind in type(hook).__mro__:
            if kind.__name__ in REWRITING_HOOKS and kind.__module__.startswith("torch."):
                raise TraceError(
                    "a hook writes a parameter before each forward pass",
                    where=path,
                    expected="parameters that forward reads",
                    found=type(hook).__name__,
                    todo=REWRITING_HOOKS[kind.__name__],
                )
    compiled = type(module).__name__ == "OptimizedModule"  # which leaves its functions out of copies
    for name, value in vars(module).items():
        cells = value.__closure__ or () if isinstance(value, FunctionType) else ()
        if any(map(_holds_module, cells)) and not (compiled or name == "_compiled_call_impl"):
            raise TraceError(
                "a function kept on the module holds the module itself, so a copy would run the original",
                where=f"{path}.{name}",
                expected="a model that copy.deepcopy copies whole",
                todo="Make it a method; to compile, use model.compile() or torch.compile(model)",
            )


def _holds_module(cell: Any) -> bool:
    try:
        content = cell.cell_contents
    except ValueError:  # not filled yet
        return False
    return isinstance(content.__self__ if isinstance(content, MethodType) else content, nn.Module)


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise TraceError("the tensor has no shape yet", where=name, todo="Call model(example) once, then trace it")
    if has_own_arithmetic(tensor):
        raise TraceError(
            "the tensor is of a class that computes in its own way",
            where=name,
            expected="an ordinary tensor",
            found=type(tensor).__name__,
            todo="Trace and train the model first; quantise, shard or distribute it afterwards",
        )
    if tensor.is_nested or tensor.is_quantized:
        raise TraceError("a nested or quantised tensor", where=name, expected="an ordinary tensor")
    if tensor.is_inference():
        raise TraceError(
            "the tensor was made under torch.inference_mode, so nothing can train it",
            where=name,
            todo="Make or load the model outside of it",
        )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _may_change_values(module: nn.Module) -> bool:
    known = dict(rewriters(module))
    before = [hook for key, hook in forward_pre_hooks(module).items() if key not in known]
    return any(map(_returns, [*before, *forward_hooks(module).values()]))


def _returns(hook: Any) -> bool:
    """Whether a hook's code can return something; PyTorch then takes it in place of the inputs or the output."""
    code = getattr(hook, "__code__", None)
    if code is None:
        return True
    steps = [(step.opname, step.argval) for step in dis.get_instructions(code)]
    return any(
        (step == "RETURN_VALUE" and before != ("LOAD_CONST", None)) or (step == "RETURN_CONST" and value is not None)
        for before, (step, value) in pairwise(steps)
    )


def immovable(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Tensors that stay whole whatever reads them, and why: a morph would break or untie them."""
    spans = []
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            yield name, "a sparse tensor"
        elif tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            yield name, f"PyTorch cannot fill {tensor.dtype}"
        elif tensor.numel() and not tensor.is_meta:
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + (reach + 1) * tensor.element_size(), name))
    end, owner = ("", 0), ""
    for device, start, stop, name in sorted(spans):
        if (device, start) < end and device == end[0]:
            yield name, f"shares memory with {owner}"
            yield owner, f"shares memory with {name}"
        if (device, stop) > end or device != end[0]:
            end, owner = (device, stop), name


def cannot_export(model: nn.Module, inputs: tuple[tuple[Any, ...], Mapping[str, Any]], error: Exception) -> TraceError:
    """What to tell the user of a failed export: which module, and what to do about this kind of error."""
    text = f"{type(error).__name__}: {error}"
    expected, todo = next(
        ((expected, todo) for signs, expected, todo in CAUSES if any(sign in text for sign in signs)),
        ("an example the model accepts", "Call model(example) yourself first; what fails in export alone can be cut "
         "off by tracing a submodule"),
    )  # fmt: skip
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    kinds = ", ".join(dict.fromkeys(f"{t.dtype} on {t.device}".removeprefix("torch.") for t in tensors))
    return TraceError(
        f"torch.export cannot read this model with this example ({first_line(error)})",
        where=failing_module(model, error),
        expected=expected,
        found="inputs of shape " + ", ".join(str(tuple(t.shape)) for t in tensors) + f" ({kinds})"
        if tensors
        else "no tensors in the example",
        todo=todo,
    )
