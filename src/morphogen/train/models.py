"""Any model by name: the CIFAR ResNets, torchvision's, timm's, or one's own."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torchvision
from torch import nn

from ..errors import ConfigError, first_line
from ..spec import parse_call, suggest
from .cifar_resnet import CIFAR_RESNETS


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


def _by_name(source: str, name: str) -> Callable[..., Any]:
    torchvision_names, timm_names = torchvision.models.list_models(), timm.list_models()
    if not source and name in CIFAR_RESNETS:
        return CIFAR_RESNETS[name]
    if source != "timm" and name in torchvision_names:
        return lambda **arguments: torchvision.models.get_model(name, weights=None, **arguments)
    if source != "torchvision" and (name in timm_names or timm.is_model(name)):
        return lambda **arguments: timm.create_model(name, pretrained=False, **arguments)
    names = {"timm": timm_names, "torchvision": torchvision_names}
    known = names.get(source, [*CIFAR_RESNETS, *torchvision_names, *timm_names])
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
