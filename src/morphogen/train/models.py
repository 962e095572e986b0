"""Any model by name: those for CIFAR, torchvision's, timm's, segmentation-models-pytorch's, or one's own."""

from __future__ import annotations

import importlib
import inspect
import re
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
from .small_detector import SMALL_DETECTORS

BUILT_IN = CIFAR_RESNETS | CIFAR_VGGS | SMALL_DETECTORS
"""The networks for small images, by their bare names."""

OPEN_SOURCES = ("", "timm", "torchvision", "smp")
"""What a file may name a model of; the bare name is looked up in all three tables."""

FETCHED = ("", "timm", "torchvision")
"""Sources that have trained weights under the model's own name."""

MOST_PARAMETERS, MOST_TENSORS = 10**10, 100_000
"""Of a model that a file names, and the tensors that hold them; timm's largest has 7e9 in 600."""

LARGEST_NUMBER = 1_000_000
"""Among the arguments that a file gives a model."""


def build_model(
    text: str, num_classes: int | None = None, drop_path: float = 0.0, *, trained: bool = False
) -> nn.Module:
    """Build a model, untrained where nothing else is asked for.

    Args:
        text: `resnet20(width=32)`, `torchvision:resnet50`, `timm:deit_tiny_patch16_224`, a bare name (looked up
            in that order), `smp:DeepLabV3Plus(encoder_name='tu-resnet18')` of segmentation-models-pytorch, or
            `package.module:function`; keyword arguments in brackets.
        num_classes: passed on as `num_classes` where the model takes it; None for the model's own number.
        drop_path: rate of stochastic depth, passed on as `drop_path_rate`; 0 for models without it.
        trained: with the weights that timm or torchvision has for it by default, which are fetched where they are not
            on this machine.

    Raises:
        ConfigError: no such model, or it refuses the arguments; no weights of it are known, or to be had.
    """
    name, arguments = parse_call(text)
    source, _, bare = name.rpartition(":")
    if trained and (source not in FETCHED or (not source and bare in BUILT_IN)):
        raise ConfigError("no weights are known of this model", where=text, expected="a file, --pretrained FILE")
    make = _by_name(source, bare, trained) if source in OPEN_SOURCES else _own(source, bare)
    takes = source != "smp" and num_classes is not None and "num_classes" not in arguments
    if takes and _takes(make, "num_classes"):
        arguments["num_classes"] = num_classes
    if source == "smp":
        arguments = _as_smp_has_it(arguments, num_classes)
    if drop_path:
        arguments.setdefault("drop_path_rate", drop_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GoogLeNet and Inception announce a future default
            model = make(**arguments)
    except Exception as error:  # whatever the model's own code raises
        if trained:
            raise ConfigError(f"its weights cannot be had ({first_line(error)})", where=text) from error
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
            "the file names code of its own for its model, and code that a file names is never run",
            where=text[:200],
            expected="a model of torchvision's, of timm's, or built in",
            todo="If you know this code, name it yourself: --model package.module:function",
        )
    try:
        encoder = arguments.pop("encoder_name", "") if name.startswith("smp:") else ""
        if not isinstance(encoder, str) or not re.fullmatch(r"[A-Za-z0-9_.-]*", encoder):
            raise ValueError(f"no name of an encoder: {encoder!r}")
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


def _as_smp_has_it(arguments: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    """Untrained, unless weights are named; `output_stride` is short for smp's `encoder_output_stride`."""
    renamed = {"encoder_output_stride" if key == "output_stride" else key: arguments[key] for key in arguments}
    classes = {} if num_classes is None else {"classes": num_classes}
    return {"encoder_weights": None, **classes, **renamed}


def _smp(name: str) -> Callable[..., Any]:
    """A model of segmentation-models-pytorch."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ConfigError(
            "the package is not installed", where=f"smp:{name}", todo="pip install 'morphogen[tasks]'"
        ) from error
    known = [
        each
        for each in smp.__all__
        if inspect.isclass(getattr(smp, each)) and issubclass(getattr(smp, each), nn.Module)
    ]
    if name not in known:
        raise ConfigError(f"no model 'smp:{name}'", todo=suggest(name, known))
    return getattr(smp, name)


def _by_name(source: str, name: str, trained: bool = False) -> Callable[..., Any]:
    if source == "smp":
        return _smp(name)
    torchvision_names, timm_names = torchvision.models.list_models(), timm.list_models()
    if not source and name in BUILT_IN:
        return BUILT_IN[name]
    if source != "timm" and name in torchvision_names:
        builder = torchvision.models.get_model_builder(name)
        known = inspect.signature(builder).parameters
        weights = {key: None for key in ("weights", "weights_backbone") if key in known}
        weights |= {"weights": "DEFAULT"} if trained else {}
        return lambda **arguments: builder(**weights, **arguments)
    if source != "torchvision" and (name in timm_names or timm.is_model(name)):
        return lambda **arguments: timm_model(name, dict(pretrained=trained, **arguments))
    names = {"timm": timm_names, "torchvision": torchvision_names}
    known = names.get(source, [*BUILT_IN, *torchvision_names, *timm_names])
    raise ConfigError(f"no model '{name}'", todo=f"{suggest(name, known)} Your own is written package.module:function")


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
