"""Which parameters of a test are in every run, and which in the nightly one alone (`pytest -m nightly`)."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def often(cases: Iterable[Any], kept: Callable[[Any], bool]) -> list[Any]:
    """`cases` of one or, where they are tuples, several parameters; those that are `kept` are in every run."""
    params = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if kept(case[0] if len(case) == 1 else case) else pytest.mark.nightly for case in params]
    return [pytest.param(*case, marks=mark) for case, mark in zip(params, marks, strict=True)]
