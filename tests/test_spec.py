"""How methods are written on the command line and in files."""

import dataclasses
from types import UnionType
from typing import get_args, get_type_hints

import pytest

import morphogen
from morphogen.methods import METHODS, build_method


@pytest.mark.parametrize("name", METHODS)
def test_what_a_setting_is_declared_as_can_be_written(name):
    """An operator that may be left out has a default of None; it is a name, and no number."""
    hints = get_type_hints(METHODS[name])
    samples = {str: "quiet", float: 0.5, int: 1, bool: True}
    for setting in dataclasses.fields(METHODS[name]):
        hint = hints[setting.name]
        kinds = {*get_args(hint)} if isinstance(hint, UnionType) else {hint}
        kinds -= {int} if float in kinds else set()
        for sample in [samples[kind] for kind in kinds if kind in samples]:
            try:
                build_method(f"{name}({setting.name}={sample!r})")
            except morphogen.MorphogenError as error:  # the value is none for this setting; its type is right
                assert "bad value" not in str(error) and "wrong type" not in str(error), error
