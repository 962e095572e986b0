"""A fault at any line: what a change of a network leaves behind when something is raised in the middle of it."""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import morphogen
from morphogen.dense.fake import FakeModel
from morphogen.dense.grid import Grids
from morphogen.machine.private import compiler_stance
from morphogen.machine.surroundings import LOGGERS

HOME = str(Path(morphogen.__file__).parent)


class Fault(BaseException):
    """What no code expects."""


class Faulty:
    """Counts what Python traces of Morphogen's own code (calls, lines, returns), and acts at the one asked for.

    Attributes:
        seen: so far.
        where: the file and the line at which it was done.
    """

    def __init__(self, at: int | None, act, counts=lambda file, line: True):
        """`counts`: which lines are counted, by file and number."""
        self.at, self.act, self.counts, self.seen, self.where = at, act, counts, 0, ""

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _called(self, frame, event, arg):
        return self._traced(frame, event, arg) if frame.f_code.co_filename.startswith(HOME) else None

    def _traced(self, frame, event, arg):
        if event != "exception" and self.counts(frame.f_code.co_filename, frame.f_lineno):
            self.seen += 1
            if self.seen == self.at:
                self.where = f"{Path(frame.f_code.co_filename).relative_to(HOME)}:{frame.f_lineno} ({event})"
                sys.settrace(None)
                self.act()
        return self._traced


def raises():
    raise Fault


def interrupted():
    """A Ctrl-C, just now."""
    signal.raise_signal(signal.SIGINT)


def handlers() -> list[Any]:
    """What Python does at signals."""
    return [signal.getsignal(number) for number in sorted(signal.valid_signals())]


def world() -> list[Any]:
    """What Python and PyTorch hold for everybody."""
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        len(_get_current_dispatch_mode_stack()),
        len(_get_current_function_mode_stack()),
        len(warnings.filters),
        id(sys.stderr),
        torch.compiler.is_compiling(),
        torch._dynamo.config.recompile_limit,
        str(compiler_stance()),
        [logger.level for logger in LOGGERS],
        torch.get_rng_state().tolist(),
    ]


CLOCKS = ("seconds", "within_steps")
"""What is measured, and never the same twice."""


def difference(left: Any, right: Any, where: str = "") -> str:
    """The first place at which two of what `told` says differ."""
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        inside = [
            difference(a, b, f"{where}/{a[0] if isinstance(a, tuple) and a else n}") for n, (a, b) in pairs if a != b
        ]
        return inside[0] if inside else ""
    return "" if left == right else f"{where}: {str(left)[:200]} | {str(right)[:200]}"


def told(value: Any, *, ids: bool = True, seen: dict[int, int] | None = None) -> Any:
    """All that an object holds, down to the bits, as plain data; with `ids` also which objects they are."""
    seen = {} if seen is None else seen

    def inside(each: Any) -> Any:
        return told(each, ids=ids, seen=seen)

    ours = type(value).__module__.startswith("morphogen") and not isinstance(value, (FakeModel, Grids))
    if isinstance(value, (torch.Tensor, nn.Module, dict, list)) or ours:
        if id(value) in seen:
            return f"number {seen[id(value)]} again"
        seen[id(value)] = len(seen)
    number = id(value) if ids else 0
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, nn.Parameter):
            return type(value).__name__
        bits = value.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy().tobytes()
        grad = inside(value.grad) if value.is_leaf else None
        who = number if isinstance(value, nn.Parameter) else 0
        return who, value.shape, value.stride(), value.dtype, value.requires_grad, bits, grad
    if isinstance(value, dict):
        pairs = ((key, each) for key, each in value.items() if key not in CLOCKS)
        return [(key if isinstance(key, str) else seen.get(id(key), "?"), inside(each)) for key, each in pairs]
    if isinstance(value, (list, tuple)):
        return [inside(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return len(value)
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return number, type(value).__name__, inside(vars(value))
    if ours and hasattr(value, "__dict__") and not isinstance(value, (morphogen.SubNetwork, type)):
        return type(value).__name__, inside(vars(value))
    if value is None or isinstance(value, (bool, int, float, str, torch.Size, torch.dtype, morphogen.SubNetwork)):
        return value
    return type(value).__name__
