"""What Python and PyTorch hold for everybody, and a change sets for a while.

Each `with` puts it back by itself, but for what is raised at the very line where it ends: then Python skips its exit.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

import torch

from .private import compilations_allowed, compiler_stance, modes_from_here, more_compilations, set_compiler_stance
from .randomness import random_state

LOGGERS = tuple(
    logging.getLogger(f"torch.{name}")
    for name in ("export", "_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")
)
"""Where PyTorch's export and fake tensors tell of what the caller gets as an exception anyway."""


def surroundings() -> Callable[[], None]:
    """What puts all of it back to what it is now: random numbers, the modes of this thread, whether gradients are
    recorded, how compiled models run and how often they may be compiled, what is printed and logged."""
    random = random_state([torch.device("cuda")] if torch.cuda.is_initialized() else [])
    leave_modes, gradients = modes_from_here(), torch.is_grad_enabled()
    stance, compilations = compiler_stance(), compilations_allowed()
    filters, stderr, levels = warnings.filters, sys.stderr, [logger.level for logger in LOGGERS]

    def put_back() -> None:
        leave_modes()  # before any tensor is written
        torch.set_grad_enabled(gradients)
        if compiler_stance() != stance:
            set_compiler_stance(stance)
        more_compilations(compilations - compilations_allowed())
        warnings.filters, sys.stderr = filters, stderr  # pyright: ignore[reportAttributeAccessIssue]
        for logger, level in zip(LOGGERS, levels, strict=True):
            logger.setLevel(level)
        random()

    return put_back
