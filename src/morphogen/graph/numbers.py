"""Where the numbers in a model's code come from: from an attribute of a module, or from the shape of a tensor.

`qkv.view(B, N, 3, self.num_heads, C // self.num_heads)` is exported with plain numbers in it. While a model is
exported, the numbers its modules keep, and those it reads off tensors, are therefore instances of `Number`: whole
numbers that remember their origin through products, quotients, sums and differences. What each call of PyTorch is
given is noted, and the ops it leads to carry its number.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, wraps
from math import ceil, floor, prod
from typing import Any

import torch
from torch import nn
from torch.fx.traceback import annotate
from torch.overrides import TorchFunctionMode

from ..dense.double import named_tensors
from ..dense.kept import copied, given_in, is_configuration, is_whole, values_in
from ..machine.private import tree_leaves

KEY = "morphogen_call"
"""Under which an op of the exported graph carries the number of the call that led to it."""


@dataclass(frozen=True)
class Attribute:
    """A number that a module keeps: its path, the attribute's name, the position where it keeps several."""

    path: str
    name: str
    index: int | None = None


@dataclass(frozen=True)
class Dim:
    """The size of one axis of a tensor: of output number `output` of a call, or of a parameter or buffer by name."""

    tensor: tuple[int, int] | str
    axis: int


@dataclass(frozen=True)
class Quotient:
    """One number divided by another, rounded down."""

    left: int
    right: int


@dataclass(frozen=True)
class Times:
    """Numbers multiplied, in the order the code names them."""

    factors: tuple[int, ...]


@dataclass(frozen=True)
class Plus:
    """Numbers added."""

    left: int
    right: int


CUTS = (torch.Tensor.__getitem__, torch.narrow, torch.Tensor.narrow, torch.split, torch.Tensor.split)
"""Calls whose numbers may be parts of sizes."""

COUNTS = (torch.numel, torch.Tensor.numel, torch.Tensor.nelement)
"""Calls that multiply all sizes of a tensor."""

TENSORS = (torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH, torch.Tensor.real, torch.Tensor.imag)
"""Properties of a tensor that are another one, whose sizes may be read."""

OWN = frozenset(vars(nn.Module()))
"""What every module keeps for PyTorch."""


@dataclass(frozen=True)
class Minus:
    """One number without another."""

    left: int
    right: int


@dataclass(frozen=True)
class Computed:
    """A number that follows another in some other way."""

    size: int


class Equal(list[tuple["Number", "Number"]]):
    """Attributes and sizes that the model's code compared and found equal; and what else it computed of them.

    Attributes:
        unequal: those found unequal.
        roots: square and fourth roots, and one by them.
        values: other numbers that are not whole, and the sizes they were computed from.
        wholes: such numbers made whole again, the last of each value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unequal: list[tuple[Number, Number]] = []
        self.roots: list[float] = []
        self.values: list[tuple[float, Number]] = []
        self.wholes: dict[int, Number] = {}


class Part(float):
    """A size multiplied with a number that is not whole, `x.size(1) * 0.5`, or divided by one, `x.size(1) / 2`."""

    size: Number
    by: int | None

    def __new__(cls, value: float, size: Number, by: int | None = None) -> Part:
        """`size` is what it is a part of, `by` the whole number that it was divided by."""
        part = float.__new__(cls, value)
        part.size, part.by = size, by
        size.equal.values += [(value, number) for number in (size, by) if isinstance(number, Number)]
        return part

    def _whole(self, value: int) -> Number:
        times = self.by or (round(int(self.size) / value) if value else 0)
        exact = int(times) > 0 and value * int(times) == int(self.size)
        number = Number(value, Quotient(self.size, times) if exact else Computed(self.size), self.size.equal)
        self.size.equal.wholes[value] = number
        return number

    def __int__(self) -> int:
        """Python hands out a plain number, which is known by its value."""
        return int(self._whole(int(float(self))))

    def __round__(self, ndigits: Any = None) -> Any:
        return self._whole(round(float(self))) if ndigits is None else round(float(self), ndigits)

    def __floor__(self) -> int:
        return self._whole(floor(float(self)))

    def __ceil__(self) -> int:
        return self._whole(ceil(float(self)))

    def __reduce__(self) -> Any:
        return float, (float(self),)


Origin = Attribute | Dim | Quotient | Times | Plus | Minus | Computed
"""Where a number comes from."""


class Number(int):
    """A whole number that remembers its origin."""

    origin: Origin
    equal: Equal

    def __new__(cls, value: int, origin: Origin, equal: Equal) -> Number:
        """Comparisons that find it equal to another are added to `equal`."""
        number = int.__new__(cls, value)
        number.origin, number.equal = origin, equal
        return number

    def __mul__(self, other: Any) -> Any:
        return self._times(self, other) if is_whole(other) else self._part(int(self) * other)

    def __rmul__(self, other: Any) -> Any:
        return self._times(other, self) if is_whole(other) else self._part(other * int(self))

    def __truediv__(self, other: Any) -> Any:
        value = int(self) / (int(other) if is_whole(other) else other)
        return Part(value, self, other) if is_whole(other) else self._part(value)

    def __rtruediv__(self, other: Any) -> Any:
        return self._part((int(other) if is_whole(other) else other) / int(self))

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        value = pow(int(self), int(other) if is_whole(other) else other, modulus)
        if isinstance(value, float):
            self.equal.roots += _roots(self)
            self.equal.values.append((value, self))
        return value

    def __float__(self) -> float:
        """As `math.sqrt` asks for it."""
        self.equal.roots += _roots(self)
        self.equal.values.append((int.__float__(self), self))
        return int.__float__(self)

    def _part(self, value: Any) -> Any:
        return Part(value, self) if type(value) is float else value

    def __floordiv__(self, other: Any) -> Any:
        return self._divided(self, other) if is_whole(other) else int(self) // other

    def __rfloordiv__(self, other: Any) -> Any:
        return self._divided(other, self) if is_whole(other) else other // int(self)

    def __add__(self, other: Any) -> Any:
        return self._plus(self, other) if is_whole(other) else int(self) + other

    def __radd__(self, other: Any) -> Any:
        return self._plus(other, self) if is_whole(other) else other + int(self)

    def __sub__(self, other: Any) -> Any:
        return self._minus(self, other) if is_whole(other) else int(self) - other

    def __rsub__(self, other: Any) -> Any:
        return self._minus(other, self) if is_whole(other) else other - int(self)

    def _times(self, left: int, right: int) -> int:
        factors = tuple(factor for number in (left, right) for factor in factors_of(number) if int(factor) != 1)
        if len(factors) == 1:
            return factors[0]
        return Number(int(left) * int(right), Times(factors), self.equal)

    def _divided(self, left: int, right: int) -> int:
        if int(right) == 1:
            return left
        return Number(int(left) // int(right), Quotient(left, right), self.equal)

    def _plus(self, left: int, right: int) -> int:
        for number, other in ((left, right), (right, left)):
            if int(number) == 0 and not isinstance(number, Number):
                return other
        return Number(int(left) + int(right), Plus(left, right), self.equal)

    def _minus(self, left: int, right: int) -> int:
        if int(right) == 0:
            return left
        return Number(int(left) - int(right), Minus(left, right), self.equal)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) is True
        if isinstance(other, Number):
            (self.equal if same else self.equal.unequal).append((self, other))
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        """Not that of the plain number: a cache (`functools.lru_cache`) must not hand out numbers of another origin."""
        return hash((id(self.equal), identity(self)))

    def __neg__(self) -> Any:
        """Counted from the end; `-(-n)` is n."""
        first, *rest = factors_of(self)
        if type(first) is int and first == -1:
            return rest[0] if len(rest) == 1 else Number(-int(self), Times(tuple(rest)), self.equal)
        return self._times(-1, self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _roots(number: int) -> list[float]:
    """What attention scales by: at once, or queries and keys each by half as much."""
    size = abs(int(number))
    return [size**power for power in (0.5, -0.5, 0.25, -0.25)] if size else [0.0]


def factors_of(number: int) -> tuple[int, ...]:
    """The numbers that a number is the product of, itself where it is none."""
    return number.origin.factors if isinstance(number, Number) and isinstance(number.origin, Times) else (number,)


def identity(number: int) -> Any:
    """What two numbers have in common that the code gets in the same way from the same places."""
    if not isinstance(number, Number):
        return int(number)
    match number.origin:
        case Quotient(left, right) | Plus(left, right) | Minus(left, right):
            return type(number.origin), identity(left), identity(right)
        case Computed(size):
            return Computed, int(number), identity(size)
        case Times(factors):
            return Times, tuple(map(identity, factors))
        case origin:
            return origin


class Numbers(TorchFunctionMode):
    """While it is active, what calls of PyTorch are given is noted.

    Attributes:
        equal: numbers that the model's code compared and found equal.
        values: numbers that it made tensors of.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._model = model
        self._open: list[Any] = []
        self._given: list[tuple[int, ...]] = []
        self._known: dict[int, tuple[torch.Tensor, tuple[int, int] | str]] = {}
        self._bodies: dict[types.FunctionType, types.FunctionType] = {}
        self._configurations: list[tuple[Any, dict[str, Any]]] = []
        self.equal = Equal()
        self.values: list[Number] = []

    def mark(self, *, configurations: bool) -> None:
        """Replace the numbers that modules keep, and look at the calls of the forward pass; the model is a double.

        Args:
            configurations: also those in objects that modules hold; each module then has an object of its own.
        """
        kind = type(self._model)
        forward = vars(self._model).get("forward")

        def seen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            for name, own in named_tensors(self._model).items():  # export has put others in the places of its own
                self._known.setdefault(id(own), (own, name))
            with self:  # here alone: export reads many shapes for itself
                return forward(*args, **kwargs) if forward is not None else kind.forward(module, *args, **kwargs)

        if forward is not None:
            self._model.forward = wraps(forward)(partial(seen, self._model))  # type: ignore[method-assign]
        else:  # a method, since export calls it with a stand-in for the model, by which it knows the paths of modules
            self._model.__class__ = type(kind.__name__, (kind,), {"forward": wraps(kind.forward)(seen)})
        for path, module in self._model.named_modules():
            for name, value in list(vars(module).items()):
                if name not in OWN:
                    module.__dict__[name] = self._marked(value, path, name)
                    if configurations and is_configuration(value):
                        own = module.__dict__[name] = copied(value)
                        held = values_in(own)
                        held.update({key: self._marked(each, path, f"{name}.{key}") for key, each in held.items()})
                        self._configurations.append((own, dict(held)))

    @property
    def configured(self) -> bool:
        """Whether numbers in objects that modules hold were marked."""
        return bool(self._configurations)

    @property
    def written(self) -> bool:
        """Whether the forward pass has written to an object that modules may share, which they do not here."""
        for own, before in self._configurations:
            now = given_in(own)
            if now.keys() != before.keys() or any(now[key] is not before[key] for key in before):
                return True
        return False

    def _marked(self, value: Any, path: str, name: str) -> Any:
        if is_whole(value):
            return Number(value, Attribute(path, name), self.equal)
        if type(value) in (tuple, list, torch.Size) and value and all(map(is_whole, value)):
            return type(value)(Number(n, Attribute(path, name, i), self.equal) for i, n in enumerate(value))
        return value

    def __torch_function__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, its ops marked with its number; what it returns remembers which call made it."""
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is torch.Tensor.shape or func is torch.Tensor.size:
            return self._shape(args[0], func(*args, **kwargs), *args[1:], **kwargs)
        if func in COUNTS:
            return prod(self._shape(args[0], args[0].shape))
        if func.__name__ == "__get__" and func.__self__ not in TENSORS:
            return func(*args)
        if isinstance(func, types.FunctionType) and func not in self._open:  # written in Python: look inside
            self._open.append(func)
            try:
                with self:
                    return self._body(func)(*args, **kwargs)
            finally:
                self._open.pop()
        number = len(self._given)
        given = _numbers((args, kwargs))
        if func in CUTS:
            given = (self.equal.wholes.get(n, n) if type(n) is int else n for n in given)
        self._given.append(tuple(given))
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.values += [n for n in self._given[number] if isinstance(n, Number)]
        with annotate({KEY: number}):
            result = func(*args, **kwargs)
        for output, tensor in enumerate(tree_leaves(result)):
            if isinstance(tensor, torch.Tensor):
                self._known[id(tensor)] = tensor, (number, output)  # kept, so that its id is not given to another
        return result

    def _body(self, function: types.FunctionType) -> types.FunctionType:
        if function not in self._bodies:
            self._bodies[function] = _body(function)
        return self._bodies[function]

    def _shape(self, tensor: torch.Tensor, shape: Any, dim: int | None = None) -> Any:
        """A shape, or one size of it, that remembers the tensor."""
        key = self._key(tensor)
        if key is None:
            return shape
        if isinstance(shape, int):
            return Number(shape, Dim(key, (dim or 0) % tensor.ndim), self.equal)
        return torch.Size(Number(size, Dim(key, axis), self.equal) for axis, size in enumerate(shape))

    def _key(self, tensor: torch.Tensor) -> tuple[int, int] | str | None:
        return self._known[id(tensor)][1] if id(tensor) in self._known else None

    def given(self, node: torch.fx.Node) -> tuple[int, ...] | None:
        """The whole numbers that the call behind an op was given, in order; None where the call is not known."""
        number = self.call_of(node)
        return None if number is None else self._given[number]

    @staticmethod
    def call_of(node: torch.fx.Node) -> int | None:
        """The number of the call behind an op."""
        return (node.meta.get("custom") or {}).get(KEY)


def _body(function: types.FunctionType) -> types.FunctionType:
    """A function of PyTorch's written in Python that does not ask for `__torch_function__` again, so that the calls
    inside it are seen one by one."""
    unasked = {name: _never for name in function.__globals__ if name.startswith("has_torch_function")}
    names = {**function.__globals__, **unasked}
    body = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _never(*_: Any) -> bool:
    return False


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers among arguments, those of slices included."""
    if is_whole(value):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
    elif isinstance(value, slice):
        yield from _numbers([value.start, value.stop, value.step])


def match(given: tuple[int, ...] | None, literal: Any) -> list[int | None]:
    """An op's argument, a number or several, as the numbers that its call was given.

    None for each that is not among them (PyTorch computed it) and for -1, which stands for what the others leave.
    """
    wanted = list(literal) if isinstance(literal, (list, tuple)) else [literal]
    unknown: list[int | None] = [None] * len(wanted)
    if given is None or not all(isinstance(number, int) for number in wanted):
        return unknown
    runs = [given[i : i + len(wanted)] for i in range(len(given) - len(wanted) + 1)]
    found = [run for run in runs if [int(number) for number in run] == [int(number) for number in wanted]]
    if not found:
        return unknown
    best = max(found, key=lambda run: sum(isinstance(number, Number) for number in run))
    return [None if int(number) == -1 else number for number in best]
