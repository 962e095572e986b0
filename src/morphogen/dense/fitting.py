"""What a model does at another resolution, watched: what its own tensors are added to, and what it leaves over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..machine.placement import on_cpu
from ..machine.private import tree_leaves, tree_map
from .double import named_tensors
from .fake import FakeModel

Resolution = tuple[int, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Own:
    """A tensor of the model's own, or what its code cut out of it.

    Attributes:
        name: of the tensor.
        missing: how much less than the tensor each axis has.
    """

    name: str
    missing: Shape


class Fitting(TorchFunctionMode):
    """Watches the model at another resolution.

    Where its own tensor is added to activations that had its size at the dense resolution, the size that it needs
    now is noted, and so are patches of a stage that do not divide what they cut: a convolution drops the rest
    silently. Patches of the image that do not raise ValueError.

    Attributes:
        met: for each of the model's own tensors, and for parts of them, the sizes of what they were added to, in order.
        cuts: for each of them, the shapes of the parts that were cut out, in order.
        sums: the shapes that were added, in order.
        shapes, left_over: what was found.
        rows: the first sizes of the outputs.
    """

    ADDITIONS = frozenset(
        {
            torch.add,
            torch.Tensor.add,
            torch.Tensor.__add__,
            torch.Tensor.__radd__,
            torch.Tensor.add_,
            torch.Tensor.__iadd__,
        }
    )

    PARTS = frozenset({torch.Tensor.__getitem__, torch.Tensor.to})

    def __init__(self, double: FakeModel, resolution: Resolution, whole: Fitting | None):
        super().__init__()
        tree = double.dense
        self.resolution, self.whole = resolution, whole
        self.own = {id(tensor): _Own(name, (0,) * tensor.ndim) for name, tensor in named_tensors(tree).items()}
        self.kept: list[torch.Tensor] = []
        self.met: dict[_Own, list[Shape]] = {}
        self.cuts: dict[str, list[Shape]] = {}
        self.shapes: dict[str, Shape] = {}
        self.left_over: list[str] = []
        self.rows: list[int] = []
        self.sums: list[tuple[Shape, Shape]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.ADDITIONS and len(args) > 1:
            first, second = self._fit(args[0], args[1]), self._fit(args[1], args[0])
            args = (first, second, *args[2:])
            if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
                self.sums.append((tuple(first.shape), tuple(second.shape)))
        elif func is torch.conv2d and len(args) > 4:
            self._check_patches(tuple(args[0].shape[-2:]), tuple(args[1].shape[2:]), args[3], args[4])
        result = func(*args, **(kwargs or {}))
        if func in self.PARTS and id(args[0]) in self.own and result.ndim == args[0].ndim:
            self._cut(self.own[id(args[0])], args[0], result)
        return result

    def _cut(self, own: _Own, whole: torch.Tensor, part: torch.Tensor) -> None:
        """A part may have been the whole, and follow the grid by itself: `table[:, : n + 1]`."""
        cuts, before = self.cuts.setdefault(own.name, []), self.whole.cuts.get(own.name, []) if self.whole else []
        cuts.append(tuple(part.shape))
        if len(before) >= len(cuts):
            dense = before[len(cuts) - 1]
            self._needs(
                own, whole, tuple(n if d == w else w for w, d, n in zip(whole.shape, dense, part.shape, strict=True))
            )
        self.kept.append(part)  # so that its id is not given to another
        missing = tuple(w - p + m for w, p, m in zip(whole.shape, part.shape, own.missing, strict=True))
        self.own[id(part)] = _Own(own.name, missing)

    def _needs(self, own: _Own, tensor: torch.Tensor, shape: Shape) -> bool:
        """Note the shape that a tensor, or a part of one, needs; whether it is another."""
        if shape == tuple(tensor.shape):
            return False
        self.shapes[own.name] = tuple(size + less for size, less in zip(shape, own.missing, strict=True))
        return True

    def _check_patches(self, sizes: Shape, kernel: Shape, stride: Any, padding: Any) -> None:
        if tuple(stride) == kernel and not any(padding):
            for size, patch in zip(sizes, kernel, strict=True):
                if size % patch:
                    self.left_over.append(f"patches of {patch} leave {size % patch} of {size} pixels over")
                    if sizes == self.resolution:  # of the image: no need to go on
                        raise ValueError(self.left_over[-1])

    def check_sums(self) -> None:
        """Compare the sums with those of the dense network; a model that adds more or less often here (a mask for
        windows of one size alone) has taken another path, of which they say nothing.

        Raises:
            ValueError: one place is spread over several.
        """
        if self.whole is None or len(self.whole.sums) != len(self.sums):
            return
        for dense, now in zip(self.whole.sums, self.sums, strict=True):
            for a, b, now_a, now_b in zip(*(shape[::-1] for shape in (*dense, *now)), strict=False):
                if a == b != 1 and now_a != now_b:
                    raise ValueError(f"a sum of {a} and {b} places becomes one of {now_a} and {now_b}")

    def _fit(self, tensor: Any, other: Any) -> Any:
        own = self.own.get(id(tensor))
        if own is None or not isinstance(other, torch.Tensor) or other.ndim < tensor.ndim:
            return tensor
        met = tuple(other.shape[other.ndim - tensor.ndim :])
        self.met.setdefault(own, []).append(met)
        known = self.whole.met.get(own, []) if self.whole else []
        if len(known) < len(self.met[own]):
            return tensor
        dense = known[len(self.met[own]) - 1]
        shape = tuple(b if a == d > 1 else a for a, d, b in zip(tensor.shape, dense, met, strict=True))
        return tensor.new_empty(shape) if self._needs(own, tensor, shape) else tensor


@on_cpu
def run_watched(model: nn.Module, fake: FakeModel, resolution: Resolution, whole: Fitting | None) -> Fitting:
    """Run a model of ordinary tensors at a resolution on fake ones, watched."""
    double = FakeModel(model, (), hooks=fake.hooks)
    fitting = Fitting(double, resolution, whole)
    args, kwargs = fake.inputs(resolution)
    with double.mode:  # fake tensors of one mode do not meet those of another
        args, kwargs = tree_map(
            lambda t: torch.empty(t.shape, dtype=t.dtype) if isinstance(t, torch.Tensor) else t, (args, kwargs)
        )
    with double.running(), torch.no_grad():
        with fitting:
            outputs = double.dense(*args, **kwargs)
        fitting.check_sums()
        fitting.rows = [t.shape[0] for t in tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.ndim]
    return fitting
