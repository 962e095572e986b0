"""From a run's output folder to files that leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..dense.network import Network
from ..errors import ConfigError, ExportError, first_line
from ..export.programs import save_onnx, save_program
from ..export.weights import read, restore, save
from ..machine.folder import owned
from .config import ExportConfig
from .earlier import EXPORTED, found, remove
from .models import build_model

NOTES = ("model", "num_classes", "drop_path", "mean", "std")
TODO = "Give the output folder of `morphogen train`"


def export_run(config: ExportConfig) -> list[Path]:
    """Write what a run trained; returns the files.

    Raises:
        ExportError: there is no such run, it cannot be read, or its network cannot be written.
        ConfigError: its model cannot be built here; the folder cannot be written to, or is another process's, or it
            holds another network and `overwrite` is off.
    """
    network, notes = load_run(Path(config.run) / "model.pt")
    output = config.output or Path(config.run)
    names = [name for name, wanted in zip(EXPORTED, (True, config.onnx, config.program), strict=True) if wanted]
    with owned(output):
        there = found(output, EXPORTED)
        if config.overwrite:
            remove(output, there)
        elif there and not _holds(output / EXPORTED[0], network):
            raise ConfigError(
                "the folder holds another network",
                where=str(output),
                found=", ".join(path.name for path in there),
                todo="Choose another with --output, or replace it with --overwrite true, which removes these files",
            )
        args, _ = network.fake.inputs(None)
        example = torch.zeros(2, args[0].shape[1], *(network.current.resolution or ()))
        save(network, output / EXPORTED[0], notes=notes)
        for name, write in (("model.onnx", save_onnx), ("model.pt2", save_program)):
            if name in names:
                write(network.model, example, output / name)
    return [output / name for name in names]


def _holds(path: Path, network: Network) -> bool:
    """Whether a file has the weights of a network; it is then written again without a question."""
    try:
        theirs, _ = read(path)
    except ExportError:
        return False
    ours = network.model.state_dict()
    return theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name].cpu()) for name in ours)


def load_run(path: Path) -> tuple[Network, dict[str, str]]:
    """The trained network of a `model.pt`, and what it says of how the model was built.

    Raises:
        ExportError: no such file, one that was not written by `Run.save`, or weights that do not fit the model.
        ConfigError: the model cannot be built here.
    """
    content = _content(path)
    tensors: dict[str, torch.Tensor] = content["state_dict"]
    metadata = {name: value for name, value in content.items() if isinstance(value, str)}
    notes = {name: metadata[name] for name in NOTES}
    try:
        classes, drop_path = int(notes["num_classes"]), float(notes["drop_path"])
    except ValueError as error:
        raise ExportError(f"the file's notes are damaged ({error})", where=str(path), todo=TODO) from error
    model = build_model(notes["model"], classes, drop_path)
    return restore(model, tensors, metadata, where=str(path)), notes


def _content(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ExportError("no trained network there", where=str(path), todo=TODO) from None
    except Exception as error:  # what PyTorch's reader stumbles over in a damaged file
        raise ExportError(f"cannot read the file ({first_line(error)})", where=str(path), todo=TODO) from error
    known = isinstance(content, dict) and all(isinstance(content.get(name), str) for name in NOTES)
    if not known or not isinstance(content.get("state_dict"), dict):
        raise ExportError(
            "not a trained network with its sub-network and the name of its model", where=str(path), todo=TODO
        )
    return content
