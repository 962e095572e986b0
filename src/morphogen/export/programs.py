"""Programs that run a model without its code: `torch.export` and ONNX, in evaluation mode, for batches of any size
where the model's own code allows that."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..dense.fake import Example, as_call, at_least_two
from ..dense.program import silence
from ..errors import ExportError, first_line
from ..machine.files import replaced
from ..machine.private import tree_map
from .extra import extra
from .finite import check_finite

NOTES_FILE = "morphogen.json"
"""The extra file of a program that holds its notes."""


def save_program(
    model: nn.Module, example: Example, path: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None
) -> None:
    """Write what `torch.export.load(path).module()` runs, by custom `*.pt2`.

    Args:
        model: any; blocks that are out export too. It is not changed, and its program is for the CPU.
        example: an input of the size the program is for; the batch (first axis of each tensor) may be any later. Where
            the model's own code compares or computes with its size, a warning says so, and it stays the example's.
        path: the file; what is there stays until the new one is whole.
        notes: text to keep in it by name, such as the classes: `torch.export.load` gives it as the extra file
            `morphogen.json`, ONNX as its metadata.

    Raises:
        ExportError: the model is not finite or cannot be exported, or the file not written.
    """
    program, _ = _export(model, example)
    with replaced(Path(path)) as file:
        torch.export.save(program, file, extra_files={NOTES_FILE: json.dumps(dict(notes))} if notes else None)


def save_onnx(
    model: nn.Module, example: Example, path: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None
) -> None:
    """Write an ONNX model of one file, by custom `*.onnx`; arguments are those of `save_program`.

    Raises:
        ExportError: the model is not finite or cannot be exported, an op has no counterpart in ONNX, the file cannot be
            written or would exceed ONNX's 2 GB, or the packages that this needs are not installed.
    """
    with extra():
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    program, shapes = _export(model, example)
    try:
        with silence():  # the shapes once more, for the name of the axis
            converted = torch.onnx.export(program, dynamic_shapes=shapes, dynamo=True, verbose=False)
        assert converted is not None
        proto = converted.model_proto  # made anew whenever it is asked for
        for name, note in (notes or {}).items():
            proto.metadata_props.add(key=name, value=note)
        content = proto.SerializeToString()
    except Exception as error:  # whatever the converter raises on this model
        raise ExportError(f"cannot be written as ONNX ({first_line(error)})", where=type(model).__name__) from error
    with replaced(Path(path)) as file:
        file.write(content)


def _export(model: nn.Module, example: Example) -> tuple[torch.export.ExportedProgram, Any]:
    """The program of a copy, which is thrown away with whatever its forward pass leaves on it; its dynamic shapes."""
    check_finite(model)
    args, kwargs = tree_map(_to_cpu, as_call(example))
    batch = torch.export.Dim("batch")

    def axes(value: object) -> dict[int, torch.export.Dim] | None:
        return {0: batch} if isinstance(value, torch.Tensor) and value.ndim else None

    try:
        with silence():
            still = copy.deepcopy(model).cpu().eval()
            shapes = tuple(map(axes, args)) if args else {name: axes(value) for name, value in kwargs.items()}
            return torch.export.export(still, args, kwargs, dynamic_shapes=shapes, strict=False), shapes
    except Exception as error:  # whatever the model's own code raises on this input
        try:
            with silence():
                args, kwargs = tree_map(_cpu, as_call(example))
                program = torch.export.export(copy.deepcopy(model).cpu().eval(), args, kwargs, strict=False)
        except Exception:  # whatever it raises again: the first time says more
            raise ExportError(
                f"torch.export cannot read this model for a batch of any size ({first_line(error)})",
                where=type(model).__name__,
                todo="Call model(example) yourself first; its forward pass may read numbers out of tensors",
            ) from error
        warnings.warn(
            f"{type(model).__name__}: the program takes batches of the example's size alone, since the model's own "
            f"code compares or computes with that size ({first_line(error)})",
            stacklevel=4,
        )
        return program, None


def _cpu(value: object) -> object:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _to_cpu(value: object) -> object:
    return at_least_two(value).cpu() if isinstance(value, torch.Tensor) else value
