"""From a run's output folder to files that leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..dense.network import Network
from ..errors import ConfigError, ExportError, first_line
from ..export.finite import check_finite
from ..export.programs import save_onnx, save_program
from ..export.weights import read, restore, save
from ..machine.folder import owned
from ..machine.reading import parse_json, read_pickle, within, words
from .config import ExportConfig
from .earlier import EXPORTED, found, remove
from .models import build_model, build_noted
from .tasks import task_of

NOTES = ("model", "num_classes", "drop_path", "mean", "std")
MORE_NOTES = ("classes", "crop", "interpolation", "metric")
"""Names of the classes, how images are framed, what the task is measured by; earlier files have none of these."""
WEIGHTS = ("model.pt", "best.pt")
"""What `train` leaves: the last network, and the best one."""
MOST_CLASSES = 1_000_000
TODO = "Give the output folder of `morphogen train`"


def export_run(config: ExportConfig) -> list[Path]:
    """Write what a run trained; returns the files.

    Raises:
        ExportError: there is no such run, it cannot be read, its network is not finite, or cannot be written.
        ConfigError: its model cannot be built here; the folder cannot be written to, or is another process's, or it
            holds another network and `overwrite` is off.
    """
    network, model, notes = load_run(Path(config.run) / WEIGHTS[config.best], config.model)
    check_finite(model)
    if model is not network.model and (config.onnx or config.program):
        raise ConfigError(
            f"how a {type(model).__name__} goes on depends on what it has found, and a program has one course",
            where="onnx" if config.onnx else "program",
            expected="the weights alone, which morphogen.load gives a model built as for training",
        )
    args, _ = network.fake.inputs(None)
    if [getattr(value, "ndim", 0) for value in args] != [4]:
        raise ExportError("the model is not called with images alone", where=config.run, todo=TODO)
    output = config.output or Path(config.run)
    names = [name for name, wanted in zip(EXPORTED, (True, config.onnx, config.program), strict=True) if wanted]
    with owned(output):
        there = found(output, EXPORTED)
        if config.overwrite:
            remove(output, there)
        elif there and not _holds(output / EXPORTED[0], model):
            raise ConfigError(
                "the folder holds another network",
                where=str(output),
                found=", ".join(path.name for path in there),
                todo="Choose another with --output, or replace it with --overwrite, which removes these files",
            )
        example = torch.zeros(2, args[0].shape[1], *(network.current.resolution or ()))
        save(network, output / EXPORTED[0], notes=notes, inside=model)
        for name, write in (("model.onnx", save_onnx), ("model.pt2", save_program)):
            if name in names:
                write(model, example, output / name, notes=notes)
    return [output / name for name in names]


def _holds(path: Path, model: nn.Module) -> bool:
    """Whether a file has the weights of a model; it is then written again without a question."""
    try:
        theirs, _ = read(path)
    except ExportError:
        return False
    ours = model.state_dict()
    return theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name].cpu()) for name in ours)


def load_run(path: Path, model: str | None = None) -> tuple[Network, nn.Module, dict[str, str]]:
    """The trained network of a `model.pt`, the whole model, which may have more than what was traced, and what the file
    says of how it was built.

    Args:
        path: the file.
        model: how the model is built, as `build_model` reads it; by default what the file says of it, of which no code
            of one's own is run (see `build_noted`).

    Raises:
        ExportError: no such file, one that was not written by `Run.save`, or weights that do not fit the model.
        ConfigError: the model cannot be built here.
    """
    content = _content(path)
    tensors: dict[str, torch.Tensor] = content["state_dict"]
    metadata = {name: value for name, value in content.items() if isinstance(value, str)}
    notes = {name: metadata[name] for name in (*NOTES, *MORE_NOTES) if name in metadata}
    try:
        classes = int(within(int(notes["num_classes"]), 1, MOST_CLASSES))
        drop_path = within(float(notes["drop_path"]), 0, 1)
        for name in ("mean", "std"):
            if len([within(value, 0, 1) for value in parse_json(notes[name])]) != 3:
                raise ValueError(f"{name} is not that of three channels")
        task = task_of(notes.get("metric", ""))
        if len(words(parse_json(notes.get("classes", "[]")))) not in (0, classes):
            raise ValueError("another number of names than of classes")
    except (TypeError, ValueError) as error:
        raise ExportError(f"the file's notes are damaged ({first_line(error)})", where=str(path), todo=TODO) from error
    if model is None:
        built = build_noted(notes["model"], classes, drop_path)
    else:
        built, notes["model"] = build_model(model, classes, drop_path), model
    task.prepare(built)
    return restore(built, tensors, metadata, where=str(path)), built, notes


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_pickle(path)
    except FileNotFoundError:
        raise ExportError("no trained network there", where=str(path), todo=TODO) from None
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read the file ({first_line(error)})", where=str(path), todo=TODO) from error
    known = isinstance(content, dict) and all(isinstance(content.get(name), str) for name in NOTES)
    if not known or not isinstance(content.get("state_dict"), dict):
        raise ExportError(
            "not a trained network with its sub-network and the name of its model", where=str(path), todo=TODO
        )
    if not all(isinstance(name, str) for name in content["state_dict"]):
        raise ExportError("its tensors have no names", where=str(path), todo=TODO)
    return content
