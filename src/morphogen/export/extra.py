"""Packages that only export needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ExportError


@contextmanager
def extra() -> Iterator[None]:
    """Import what the core does without in here; raises ExportError, which says how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        todo = "Install it with: pip install 'morphogen[export]'"
        raise ExportError(f"this needs '{error.name}'", todo=todo) from None
