"""Where index tables are: on the CPU, whatever default device the user has set."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose new tensors are on the CPU unless it says otherwise (`torch.set_default_device`)."""

    @wraps(function)
    def placed(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":  # every call inside the mode below costs some
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return placed
