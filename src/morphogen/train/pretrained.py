"""Weights to begin with: from a file, or those that timm and torchvision have for a model of theirs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, ExportError, first_line
from ..export.weights import read
from ..machine.reading import read_pickle
from .models import build_model

Source = bool | str
"""A file; `true` for the weights that the model's library has; false for none."""

INSIDE = ("state_dict", "model_state_dict", "model", "net")
"""Under these names scripts keep a state dict among other things."""

PREFIXES = ("_orig_mod.", "module.", "model.")
"""What `torch.compile`, DistributedDataParallel and Lightning put before every name."""

COUNTER = "num_batches_tracked"


def known_as(source: Source) -> str:
    """What a run knows its weights by: a file by what is in it, whatever it is called.

    Raises:
        ConfigError: there is no such file.
    """
    if isinstance(source, bool):
        return str(source)
    try:
        with open(source, "rb") as file:
            return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:32]}"
    except OSError as error:
        raise _unreadable(source, error) from error


def begin_with(model: nn.Module, source: Source, text: str, num_classes: int, *, boxes: bool = False) -> None:
    """Give a model weights, in place. A classifier of another number of classes, or none, stays new, with a warning.

    Args:
        model: as it was built.
        source: of the weights.
        text: what the model was built by, see `build_model`.
        num_classes: of the data.
        boxes: it is a detector, whose layers score classes for each anchor, or say where the box of each class is.

    Raises:
        ConfigError: the weights cannot be read or fetched, are not finite, or are not this model's; nothing is changed.
    """
    if source is False:
        return
    where = f"the weights of {text}" if source is True else source
    tensors, note = (build_model(text, trained=True).state_dict(), "") if source is True else _read(Path(source))
    own = model.state_dict()
    anew, classes = _classifier(own, tensors, num_classes, f"{where}", note, boxes)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError("a weight is not finite", where=f"{where}, {name}", todo="Begin with other weights")
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in anew}, strict=False)
    if anew:
        had = f"is for {classes} classes, not {num_classes}" if classes else "is not among them"
        warnings.warn(f"{where}: the classifier ({', '.join(anew)}) {had}; it begins anew", stacklevel=2)


def _classifier(
    own: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    num_classes: int,
    where: str,
    note: str,
    boxes: bool,
) -> tuple[list[str], int | None]:
    """The tensors of layers that score another number of classes, and how many; raises ConfigError for any other
    difference."""
    absent = [name for name in own if name not in tensors and not name.endswith(COUNTER)]
    other = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    anew = [*absent, *other]
    scoring = {
        name for name in anew if own[name].ndim and _scores(own[name].shape[0], num_classes, boxes and name in tensors)
    }
    counts = {
        Fraction(tensors[name].shape[0] * num_classes, own[name].shape[0])
        for name in other
        if name in scoring and tensors[name].ndim
    }
    wrong = [name for name in tensors if name not in own]
    wrong += [name for name in own if name in tensors and _kind(tensors[name]) != _kind(own[name])]
    wrong += [
        name
        for name in anew
        if name not in scoring
        or len(counts) > 1
        or any(count.denominator > 1 for count in counts)
        or (name in other and tensors[name].shape[1:] != own[name].shape[1:])
        or any(_module(known) == _module(name) and known not in anew for known in own if not known.endswith(COUNTER))
    ]
    for name in wrong[:1]:
        raise ConfigError(
            "the weights are not this model's" + (f" ({note})" if note else ""),
            where=f"{where}, {name}",
            expected=f"shape {tuple(own[name].shape)}, {own[name].dtype}" if name in own else "no such tensor",
            found=f"shape {tuple(tensors[name].shape)}, {tensors[name].dtype}" if name in tensors else "none",
            todo="Only a classifier may differ, by its number of classes; give the model that the weights are of",
        )
    return anew, next(map(int, counts), None)


def _scores(outputs: int, classes: int, boxes: bool) -> bool:
    """Whether a layer of so many outputs can score so many classes."""
    return outputs == classes or (boxes and 0 < classes < outputs and outputs % classes == 0)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _read(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a file, and what there is to say of it."""
    try:
        if path.suffix == ".safetensors":
            tensors, notes = read(path)
            return _plain(tensors), _smaller(notes)
        content = read_pickle(path)
    except (OSError, ValueError, ExportError) as error:
        raise _unreadable(str(path), error) from error
    notes = content if isinstance(content, dict) else {}
    for _ in range(2):
        if isinstance(content, dict) and not _is_state(content):
            content = next((content[name] for name in INSIDE if isinstance(content.get(name), dict)), content)
    if not (isinstance(content, dict) and _is_state(content)):
        raise ConfigError(
            "no state dict in the file",
            where=str(path),
            expected=f"tensors by name, by themselves or under {', '.join(INSIDE)}",
            found=_kinds(content),
        )
    return _plain(content), _smaller(notes)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what stands before every name."""
    found = dict(tensors)
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _smaller(notes: Mapping[str, Any]) -> str:
    """Of a file of ours: it may be of a smaller network than the model."""
    return "a file of a network that Morphogen has trained, perhaps pruned" if "subnetwork" in notes else ""


def _kinds(content: Any) -> str:
    names: Iterable[Any] = content if isinstance(content, dict) else ()
    shown = ", ".join(str(name)[:20] for name in [*names][:5])
    return type(content).__name__ + (f" with {shown}" if shown else "")


def _unreadable(path: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot read the weights ({first_line(error)})",
        where=path,
        expected="a .safetensors file, a state dict of torch.save, or the model.pt of a run",
    )
