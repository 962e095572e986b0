"""A sub-network in a safetensors file, and back onto the model's ordinary constructor.

The metadata say what brings the dense model to the weights: the sub-network, the input that the dense model was
traced with (shapes and dtypes), and the modules that were left whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..dense.fake import Example
from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ExportError, MorphogenError, SubNetworkError, first_line
from ..graph.trace import trace
from ..machine.files import replaced
from ..machine.reading import DTYPES, MALFORMED, parse_json, whole, words
from ..morph.averages import averaged, several_averages
from ..morph.commit import morph
from .extra import extra
from .finite import check_finite

MOST_NUMBERS = 2**28
"""In the input that a file says its model is called with: a gigabyte."""

REBUILD = "Build the model as it was built for training, and load into it before anything else changes it"


def save(
    network: Network,
    path: str | os.PathLike[str],
    *,
    ema: Any = None,
    notes: Mapping[str, str] | None = None,
    inside: nn.Module | None = None,
) -> None:
    """Write the model as it is now to a safetensors file, with its sub-network in the metadata; see `load`.

    Blocks that are out have no tensors in it. A file already there stays until the new one is whole.

    Args:
        network: what `trace` returned; of a method in one's own loop, `run.network`.
        path: the file, by custom `*.safetensors`.
        ema: an averaged copy of the model whose weights to write instead, as for `morph`.
        notes: more to keep in the metadata, by name.
        inside: a larger model that the traced one is a part of (a detector whose backbone it is), to write whole.

    Raises:
        ExportError: `inside` does not hold the model, a weight or buffer is not finite, the file cannot be written, or
            safetensors is not installed.
        SubNetworkError: the tensors are not those of the network's current sub-network, as while a method keeps
            something of its own in the model (before `run.end()`).
    """
    with extra():
        from safetensors.torch import save as to_bytes

    model = next((averaged(each, network.model) for each in several_averages(ema, network.model)), network.model)
    path_inside = "" if inside is None else _place(inside, model)
    tensors = (inside or model).state_dict()
    check_finite(inside or model)
    check_tensors(_of_part(tensors, path_inside), network, network.current)
    # Copies, because tied weights are one tensor under two names, which safetensors refuses.
    copies = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in tensors.items()
    }
    with replaced(Path(path)) as file:
        file.write(to_bytes(copies, {**metadata_of(network, notes, path_inside), "format": "pt"}))


def load(model: nn.Module, path: str | os.PathLike[str], *, example: Example | None = None) -> nn.Module:
    """Bring a dense model to the sub-network in a file, and give it the weights.

        model = morphogen.load(torchvision.models.resnet50(num_classes=10), "pruned.safetensors")

    Args:
        model: what the model's ordinary constructor returns, with any weights; it is changed in place.
        path: a file that `save` wrote.
        example: an input of the size that the dense model was traced with, where it was not made of tensors alone.

    Returns:
        The same model: narrower, shallower, and an ordinary module. Its mode, device and precision are what they were.

    Raises:
        ExportError: the file cannot be read, or it does not fit this model; the model is then as it was.
    """
    restore(model, *read(Path(path)), where=str(path), example=example)
    return model


def metadata_of(network: Network, notes: Mapping[str, str] | None = None, part: str = "") -> dict[str, str]:
    """What brings the dense model to its present sub-network, as text by name.

    Args:
        network: the traced model.
        notes: more to say.
        part: path of the traced model inside the one whose weights are written; empty where it is the same.
    """
    from .. import __version__

    args, kwargs = network.fake.inputs(None)
    found = {
        **{name: str(note) for name, note in (notes or {}).items()},
        "morphogen": __version__,
        "subnetwork": network.current.to_json(),
    }
    if part:
        found["part"] = part
    found["exclude"] = json.dumps(network.structure.exclude)
    if all(isinstance(value, torch.Tensor) for value in [*args, *kwargs.values()]):
        kinds = {name: _kind(value) for name, value in kwargs.items()} or [_kind(value) for value in args]
        found["example"] = json.dumps(kinds)
    return found


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ExportError: there is no such file, or it cannot be read.
    """
    with extra():
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise ExportError("no such file", where=str(path)) from None
    except (SafetensorError, OSError, RuntimeError, *MALFORMED) as error:
        raise ExportError(
            f"cannot read the file ({first_line(error)})",
            where=str(path),
            expected="a safetensors file, whole",
            todo="It may have been cut short; write or copy it again",
        ) from error


def restore(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    where: str,
    example: Example | None = None,
) -> Network:
    """Trace a dense model, bring it to a sub-network and give it weights: all of it, or nothing.

    Args:
        model: untouched, as its constructor returns it.
        tensors: a `state_dict` of the sub-network.
        metadata: what `metadata_of` said of it.
        where: the file they are from, for errors.
        example: see `load`.

    Returns:
        The network, of the model or of the part of it that was traced.

    Raises:
        ExportError: they do not fit this model, which is then as it was.
    """
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        raise ExportError(
            "a model on the meta device has nowhere to keep weights",
            where=where,
            todo="Build it on a device, or call model.to_empty(device=...) first",
        )
    try:
        subnetwork, part = SubNetwork.from_json(metadata["subnetwork"]), metadata.get("part", "")
        traced = model.get_submodule(part)
        exclude = words(parse_json(metadata["exclude"]))
        if example is None:
            example = _example(parse_json(metadata["example"]), model)
    except (MorphogenError, *MALFORMED) as error:
        raise ExportError(
            f"the metadata name no sub-network, or not what its model is called with ({first_line(error)})",
            where=where,
            expected="a file written by morphogen.save, after a trace with tensors",
            todo="With another input, give load(..., example=)",
        ) from error
    _check_same_kind(model, tensors, where)
    try:
        network = trace(traced, example, exclude=exclude)
        network.check(subnetwork)
        check_tensors(_of_part(tensors, part), network, subnetwork)
        _check_others(model, tensors, part)
        morph(network, subnetwork)
    except MorphogenError as error:
        raise ExportError(f"does not fit this {type(model).__name__} ({error})", where=where, todo=REBUILD) from error
    model.load_state_dict(tensors)
    return network


def check_tensors(tensors: Mapping[str, Any], network: Network, subnetwork: SubNetwork) -> None:
    """Raise SubNetworkError unless these are the tensors of a sub-network, by name and shape, and tensors alone."""
    sketched = network.sketch(subnetwork).state_dict()
    for name, value in [*sketched.items(), *tensors.items()]:
        if not isinstance(value, torch.Tensor):
            raise SubNetworkError(
                "a module's extra state is not a tensor", where=name, expected="parameters and buffers alone"
            )
    expected = {name: tuple(tensor.shape) for name, tensor in sketched.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise SubNetworkError(
                "the tensor is not what the sub-network says",
                where=name,
                expected=f"shape {expected[name]}" if name in expected else "no such tensor",
                found=f"shape {found[name]}" if name in found else "none",
            )


def _place(inside: nn.Module, model: nn.Module) -> str:
    """The path of a module inside another; raises ExportError where it has none."""
    for path, module in inside.named_modules():
        if module is model:
            return path
    raise ExportError(
        "the traced model is no part of it",
        where=type(inside).__name__,
        expected=f"a model with this {type(model).__name__} in it",
    )


def _of_part(tensors: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Those of a part, by their names in it."""
    before = f"{part}." if part else ""
    return {name.removeprefix(before): tensor for name, tensor in tensors.items() if name.startswith(before)}


def _check_others(model: nn.Module, tensors: Mapping[str, torch.Tensor], part: str) -> None:
    """Raise SubNetworkError unless the tensors beside a traced part are there, in the shapes that they have."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(f"{part}.")}
    for name, shape in own.items() if part else ():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise SubNetworkError(
                "a tensor beside the traced part is another",
                where=name,
                expected=f"shape {shape}",
                found=f"shape {tuple(tensors[name].shape)}" if name in tensors else "none",
            )


def _check_same_kind(model: nn.Module, tensors: Mapping[str, Any], where: str) -> None:
    """What shows before a trace: another model, another precision."""
    own = model.state_dict()
    others = sorted(tensors.keys() - own.keys())
    if others:
        raise ExportError(
            "the weights are another model's",
            where=where,
            expected=f"tensors of this {type(model).__name__}",
            found=f"{others[0]}" + (f" and {len(others) - 1} more that it does not have" if others[1:] else ""),
            todo=REBUILD,
        )
    for name, tensor in tensors.items():
        kinds = [getattr(value, "dtype", None) for value in (tensor, own[name])]
        if None not in kinds and kinds[0] != kinds[1]:
            raise ExportError(
                f"the weights are of another precision ({name})",
                where=where,
                expected=f"{own[name].dtype}, as in the model",
                found=f"{tensor.dtype}",
                todo="Bring the model to the precision of the file first, with model.to(...)",
            )


def _kind(tensor: torch.Tensor) -> list[Any]:
    """Shape and dtype as JSON types."""
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]


def _example(kinds: Any, model: nn.Module) -> Example:
    """Zeros of the stored kinds, where the model is."""
    device = next((parameter.device for parameter in model.parameters()), None)
    shapes = [tuple(whole(side, 1, MOST_NUMBERS) for side in shape) for shape, _ in _values(kinds)]
    if sum(map(math.prod, shapes)) > MOST_NUMBERS:
        raise ValueError(f"an input of more than {MOST_NUMBERS:,} numbers")
    tensors = [
        torch.zeros(shape, dtype=DTYPES[f"torch.{dtype}"], device=device)
        for shape, (_, dtype) in zip(shapes, _values(kinds), strict=True)
    ]
    return dict(zip(kinds, tensors, strict=True)) if isinstance(kinds, dict) else tuple(tensors)


def _values(kinds: Any) -> list[Any]:
    return list(kinds.values() if isinstance(kinds, dict) else kinds)
