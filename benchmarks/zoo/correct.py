"""Whether a narrower network computes what it should: compared with the masked dense network, or poisoned.

Four checks, the strongest that applies counts (`check`):

masked dense  the dense network with the dropped channels set to zero computes the same (invariant 3). Holds for every
              network in which no op looks across channels.
size-free     the same comparison, with every op that divides by a number of channels (layer norm, group norm, means,
              the scale of attention) put by one that does not, in both networks. Zero channels then add nothing, so
              the comparison holds again; it is about the couplings, which are the same.
elementwise   the same with norms that look at each value alone, where dropped channels do not stay zero (a mixer adds
              biases along its tokens).
poison        NaN in whatever is dropped never reaches the output, and whatever is kept still receives a gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import morphogen
from morphogen.dense.double import named_tensors
from morphogen.dense.fake import as_call

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import checks

aten = torch.ops.aten
SHARE = 1 / 64
"""What a size-free mean multiplies a sum by: any number, the same in both networks."""


BY = " by "


class Wrong(Exception):
    """The narrower network computes something else than it should."""


@dataclass
class Verdict:
    """The check that decided, and what each that was run found."""

    check: str = ""
    found: dict[str, str] = field(default_factory=dict)
    across: list[str] = field(default_factory=list)


def shake(model: nn.Module) -> None:
    """Weights and statistics as after training: no constant, no scale of zero that hides a branch.

    Matrices move by no more than keeps the signal's size through a hundred layers.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim < 2 else 0.5 / sqrt(max(1, parameter[0].numel()))
            parameter.add_(scale * torch.randn_like(parameter))
    checks.randomise_statistics(model)


def tensors_in(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors that a model returned."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def call(model: nn.Module, x: Any) -> Any:
    """What the model returns for an example, the same each time though it draws random numbers or writes into it."""
    args, kwargs = as_call(tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, x))
    if not model.training:
        torch.manual_seed(0)
    return model(*args, **kwargs)


def _double(x: Any) -> Any:
    return tree_map(lambda t: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, x)


def check(net: morphogen.Network, half: morphogen.SubNetwork, x: Any) -> Verdict:
    """Narrow the dense network to `half`, and check what it then computes; raises Wrong.

    In double precision, so that differences of summation order do not grow through a hundred layers; in single
    where the model's own code forbids it.
    """
    assert net.current == net.dense
    net.model.eval()
    try:
        with torch.no_grad():
            call(net.model.double(), _double(x))
        x, tolerance = _double(x), 1e-6
    except Exception:  # whatever a model raises that keeps numbers of its own
        net.model.float()
        tolerance = 1e-3
    verdict = Verdict()
    ways = {"masked dense": _plain, "size-free": _size_free, "elementwise": partial(_size_free, elementwise=True)}
    with torch.no_grad():
        whole = _plain(net.model, x)[0]
        masked = morphogen.masked_dense(net, half)
        expected = {way: run(masked, x) for way, run in ways.items()}
        del masked
        morphogen.morph(net, half)
        dense, narrow = expected["size-free"][1], _size_free(net.model, x)[1]
        scaled = {entry for entry in dense ^ narrow if BY in entry}  # by numbers computed from sizes
        verdict.across = sorted({entry for entry in dense if BY not in entry} | scaled)
        for way, run in ways.items():
            distance = _distance(run(net.model, x)[0], expected[way][0])
            verdict.check, verdict.found[way] = way, "equal" if distance <= tolerance else f"differs by {distance:.1g}"
            if verdict.found[way] == "equal":
                if way == "masked dense" and _distance(whole, expected[way][0]) <= tolerance:
                    verdict.found[way] = "equal, but masking changes nothing"
                break
            if not verdict.across:
                raise Wrong(f"{way} {verdict.found[way]}, and no op looks across channels")
    if verdict.found["masked dense"].startswith("equal"):
        return verdict
    morphogen.morph(net, net.dense, operator="random")
    poison(net, half, x)
    verdict.found["poison"] = "clean"
    if verdict.found[verdict.check] != "equal":
        verdict.check = "poison"
    return verdict


def poison(net: morphogen.Network, half: morphogen.SubNetwork, x: Any) -> None:
    """NaN in everything `half` drops must go with it, and everything it keeps must still be trained."""
    asleep = set[str]()
    for model in (net.model, morphogen.masked_dense(net, half)):  # in the second one a small layer may be all zero
        _backward(model, x)
        asleep |= _asleep(model)
    alive = net.structure.alive_mask(half)
    tensors = named_tensors(net.model)
    with torch.no_grad():
        for name, layout in net.structure.tensors.items():
            for dim, axis in enumerate(layout.axes):
                if axis is not None and tensors[name].is_floating_point():
                    tensors[name].index_fill_(dim, (~alive[axis]).nonzero().flatten(), torch.nan)
    morphogen.morph(net, half)
    if not all(bool(tensor.isfinite().all()) for tensor in _backward(net.model, x)):
        raise Wrong("poison: NaN of dropped channels reached the output")
    for name, parameter in net.model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise Wrong(f"poison: NaN of dropped channels reached the gradient of {name}")
        if not _largest(parameter.grad) and name not in asleep:
            raise Wrong(f"poison: {name} is kept and receives no gradient")


def _asleep(model: nn.Module) -> set[str]:
    """Parameters that nothing is learnt in: without a gradient, or with one that is rounding alone, such as a bias that
    a softmax takes out again."""
    largest = {name: _largest(parameter.grad) for name, parameter in model.named_parameters()}
    most = max(largest.values())
    return {name for name, p in model.named_parameters() if largest[name] <= 100 * torch.finfo(p.dtype).eps * most}


def _largest(grad: torch.Tensor | None) -> float:
    return 0.0 if grad is None or not grad.numel() else float(grad.abs().max())


def backward(model: nn.Module, x: Any) -> list[torch.Tensor]:
    """Outputs, and gradients of a random mean of them."""
    output = tensors_in(call(model, x))
    torch.autograd.backward([(tensor * torch.randn_like(tensor)).mean() for tensor in output if tensor.requires_grad])
    return output


def _backward(model: nn.Module, x: Any) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    return backward(model, x)


def _distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest expected value.

    Hidden states beside the answer may be narrower, for nothing that is trained reads them; of the others, of which the
    first is one, shapes are equal.
    """
    if len(ours) != len(theirs) or ours[0].shape != theirs[0].shape:
        raise Wrong(f"{len(ours)} outputs, the first {[*ours[0].shape]}; {len(theirs)}, the first {[*theirs[0].shape]}")
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.shape == b.shape]
    ours, theirs = [a for a, _ in same], [b for _, b in same]
    if not all(bool(t.isfinite().all()) for t in theirs):
        raise ValueError("nothing to compare: the masked dense network's output is not finite")
    pairs = [((a - b).abs().max(), b.abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    return max((float(apart / most.clamp_min(1e-30)) for apart, most in pairs), default=0.0)


def _plain(model: nn.Module, x: Any) -> tuple[list[torch.Tensor], set[str]]:
    return tensors_in(call(model, x)), set()


def _size_free(model: nn.Module, x: Any, *, elementwise: bool = False) -> tuple[list[torch.Tensor], set[str]]:
    with SizeFreeAttention() as attention, SizeFree(elementwise=elementwise) as mode:
        return tensors_in(call(model, x)), mode.across | attention.across


class SizeFreeAttention(TorchFunctionMode):
    """Scales attention by a constant instead of the number of channels of a head.

    Attributes:
        across: its name, where the model leaves the scale to PyTorch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.across: set[str] = set()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give the scale where the model leaves it to PyTorch."""
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            kwargs["scale"] = 0.125
            self.across.add("scaled_dot_product_attention")
        return func(*args, **kwargs)


class SizeFree(TorchDispatchMode):
    """Puts sums for means in every op that looks across channels, and notes these ops.

    Attributes:
        across: their names, and those of others that look across channels and cannot be replaced.
        elementwise: norms look at each value alone.
    """

    def __init__(self, *, elementwise: bool = False) -> None:
        super().__init__()
        self.across: set[str] = set()
        self.elementwise = elementwise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace one op, or run it as it is."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        replace = REPLACED.get(name)
        if name in {"mul", "div"} and isinstance(args[1], (int, float)):
            self.across.add(f"{name}{BY}{args[1]:g}")
        if (replace is None and name not in NOTED) or not _looks_across(name, args, kwargs):
            return func(*args, **kwargs)
        self.across.add(name)
        if self.elementwise and name in NORMS:
            kwargs = {**kwargs, "alone": True}
        return func(*args, **kwargs) if replace is None else replace(*args, **kwargs)


NOTED = {"_softmax", "_log_softmax", "amax", "amin", "max", "min", "argmax", "topk", "sort", "avg_pool3d", "cumsum"} | {
    "_scaled_dot_product_flash_attention_for_cpu"
}
BATCH_NORMS = {"native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "_batch_norm_with_update"}


def _looks_across(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an op may look across channels: certainly not over height and width alone."""
    if name in BATCH_NORMS:  # of weights (weight standardisation) or of one image alone
        return bool(args[5])
    if name in {"mean", "var", "std", "var_mean", "amax", "amin", "max", "min"} and args[0].ndim == 4:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        return not dims or {dim % 4 for dim in dims} != {2, 3}  # the last alone may be channels
    return True


def _sum(x: torch.Tensor, dim: Any, keepdim: bool) -> torch.Tensor:
    return SHARE * (x.sum() if not dim else x.sum(dim, keepdim=keepdim))


def _mean(x: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> torch.Tensor:
    return _sum(x if dtype is None else x.to(dtype), dim, keepdim)


def _var(x: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> torch.Tensor:
    return _sum(x * x, dim, keepdim)


def _std(x: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> torch.Tensor:
    return _var(x, dim, keepdim=keepdim).sqrt()


def _var_mean(x: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _var(x, dim, keepdim=keepdim), _mean(x, dim, keepdim)


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _normalised(x: torch.Tensor, dims: list[int], eps: float | None, alone: bool) -> torch.Tensor:
    return x * ((x * x if alone else _sum(x * x, dims, True)) + (1.0 if alone else eps or 1e-6)).rsqrt()


def _layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float | None, alone: bool = False) -> Any:
    y = _affine(_normalised(x, [*range(-len(shape), 0)], eps, alone), weight, bias)
    return y, x.new_empty(0), x.new_empty(0)


def _rms_norm(x: torch.Tensor, shape: Any, weight: Any, eps: float | None, alone: bool = False) -> Any:
    return _layer_norm(x, shape, weight, None, eps, alone)[:2]


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float, alone: bool = False
) -> Any:
    y = _normalised(x.reshape(n, groups, -1), [2], eps, alone).reshape(x.shape)
    return _affine(y, *_per_channel(x, weight, bias)), x.new_empty(0), x.new_empty(0)


def _batch_norm(x: torch.Tensor, weight: Any, bias: Any, *rest: Any, alone: bool = False) -> Any:
    y = _normalised(x, [dim for dim in range(x.ndim) if dim != 1], rest[-1], alone)
    return _affine(y, *_per_channel(x, weight, bias)), x.new_empty(0), x.new_empty(0)


def _per_channel(x: torch.Tensor, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if t is None else t.reshape(1, -1, *[1] * (x.ndim - 2)) for t in tensors]


NORMS: dict[str, Callable[..., Any]] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
}
REPLACED: dict[str, Callable[..., Any]] = {"mean": _mean, "var": _var, "std": _std, "var_mean": _var_mean, **NORMS}
"""What an op is put by, by its name; each takes what the op takes."""
