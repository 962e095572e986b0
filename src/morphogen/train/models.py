"""Any model by name: those for CIFAR, torchvision's, timm's, or one's own."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm
import torchvision
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import ConfigError, first_line
from ..machine.reading import MALFORMED, walk, within
from ..spec import parse_call, suggest
from .cifar_resnet import CIFAR_RESNETS
from .cifar_vgg import CIFAR_VGGS

BUILT_IN = CIFAR_RESNETS | CIFAR_VGGS
"""The networks for small images, by their bare names."""

OPEN_SOURCES = ("", "timm", "torchvision")
"""What a file may name a model of; the bare name is looked up in all three tables."""

MOST_PARAMETERS, MOST_TENSORS = 10**10, 100_000
"""Of a model that a file names, and the tensors that hold them; timm's largest has 7e9 in 600."""

LARGEST_NUMBER = 1_000_000
"""Among the arguments that a file gives a model."""


def build_model(text: str, num_classes: int, drop_path: float = 0.0) -> nn.Module:
    """Build an untrained model.

    Args:
        text: `resnet20(width=32)`, `torchvision:resnet50`, `timm:deit_tiny_patch16_224`, a bare name (looked up
            in that order), or `package.module:function`; keyword arguments in brackets.
        num_classes: passed on as `num_classes` where the model takes it.
        drop_path: rate of stochastic depth, passed on as `drop_path_rate`; 0 for models without it.

    Raises:
        ConfigError: no such model, or it refuses the arguments.
    """
    name, arguments = parse_call(text)
    source, _, bare = name.rpartition(":")
    make = _by_name(source, bare) if source in ("", "timm", "torchvision") else _own(source, bare)
    if "num_classes" not in arguments and _takes(make, "num_classes"):
        arguments["num_classes"] = num_classes
    if drop_path:
        arguments.setdefault("drop_path_rate", drop_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GoogLeNet and Inception announce a future default
            model = make(**arguments)
    except Exception as error:  # whatever the model's own code raises
        todo = "Set drop_path to 0" if drop_path and "drop_path_rate" in str(error) else ""
        raise ConfigError(f"cannot build the model ({first_line(error)})", where=text, todo=todo) from error
    if not isinstance(model, nn.Module):
        raise ConfigError("not a model", where=text, expected="a torch.nn.Module", found=type(model).__name__)
    return model


def build_noted(text: str, num_classes: int, drop_path: float = 0.0) -> nn.Module:
    """Build the untrained model that a file names.

    A file is data: what it names is built in, torchvision's or timm's, and gets numbers alone, which name no weights,
    no other file and no address. One's own code runs when its user names it, to `build_model`.

    Raises:
        ConfigError: it names anything else, or a model that is too large.
    """
    name, arguments = parse_call(text)
    if name.rpartition(":")[0] not in OPEN_SOURCES:
        raise ConfigError(
            "the file names code of one's own for its model, and nothing that a file names is run",
            where=text[:200],
            expected="a model of torchvision's, of timm's, or built in",
            todo="If you know this code, name it yourself: --model package.module:function",
        )
    try:
        for value in walk(list(arguments.values())):
            if value is not None and not isinstance(value, (bool, list, tuple)):
                within(value, -LARGEST_NUMBER, LARGEST_NUMBER)
    except MALFORMED as error:
        raise ConfigError(
            f"the file gives its model more than numbers ({first_line(error)})",
            where=text[:200],
            todo="If the model is yours, name it yourself with --model",
        ) from error
    with _bounded():
        return build_model(text, num_classes, drop_path)


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop a model that has too many parameters, while it is built and before they are filled."""
    tensors = numbers = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        if parameter is not None:
            tensors, numbers = tensors + 1, numbers + parameter.numel()
        if tensors > MOST_TENSORS or numbers > MOST_PARAMETERS:
            raise ValueError(f"more than {MOST_PARAMETERS:,} parameters, or {MOST_TENSORS:,} tensors of them")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class Crop(NamedTuple):
    """How a test image is shown.

    Attributes:
        share: of the shorter side, that its centre has.
        interpolation: by which it is brought to its size: `bilinear` or another of torchvision's.
    """

    share: float = 0.875
    interpolation: str = "bilinear"


def crop_of(text: str, side: int) -> Crop:
    """The crop of a timm model's own configuration, for images of `side` pixels; torchvision's for all others."""
    source, _, bare = parse_call(text)[0].rpartition(":")
    theirs = source == "timm" or (not source and bare not in {*BUILT_IN, *torchvision.models.list_models()})
    if not theirs or not timm.is_model(bare) or (found := timm.models.get_pretrained_cfg(bare)) is None:
        return Crop()
    at_test = found.test_crop_pct if (found.test_input_size or (0,))[-1] == side else None
    return Crop(at_test or found.crop_pct, found.interpolation)


def timm_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """`timm.create_model`, where weights from a file (`checkpoint_path`) are read as data, whatever timm's version."""
    path = arguments.pop("checkpoint_path", None)
    model = timm.create_model(name, **arguments)
    if path is not None:
        timm.models.load_checkpoint(model, path, weights_only=True)
    return model


def _by_name(source: str, name: str) -> Callable[..., Any]:
    torchvision_names, timm_names = torchvision.models.list_models(), timm.list_models()
    if not source and name in BUILT_IN:
        return BUILT_IN[name]
    if source != "timm" and name in torchvision_names:
        builder = torchvision.models.get_model_builder(name)
        known = inspect.signature(builder).parameters
        untrained = {key: None for key in ("weights", "weights_backbone") if key in known}
        return lambda **arguments: builder(**untrained, **arguments)
    if source != "torchvision" and (name in timm_names or timm.is_model(name)):
        return lambda **arguments: timm_model(name, dict(pretrained=False, **arguments))
    names = {"timm": timm_names, "torchvision": torchvision_names}
    known = names.get(source, [*BUILT_IN, *torchvision_names, *timm_names])
    raise ConfigError(f"no model '{name}'", todo=f"{suggest(name, known)} One's own is written package.module:function")


def _own(module: str, function: str) -> Callable[..., Any]:
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ConfigError(
            f"cannot import the model ({first_line(error)})",
            where=f"{module}:{function}",
            todo="The package must be installed, or in the folder you start from",
        ) from error
    if not callable(make):
        raise ConfigError("not callable", where=f"{module}:{function}", expected="a function or class")
    return make


def _takes(make: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(p.name == argument or p.kind == p.VAR_KEYWORD for p in parameters)
