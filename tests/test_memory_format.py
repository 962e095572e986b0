"""A run is laid out channels-last, except where PyTorch's kernel for narrow strided 1 x 1 convolutions would crash."""

import warnings

import pytest
import torch
from torch import nn

from morphogen.train.memory_format import in_memory_format
from morphogen.train.recipe import Recipe


def net(width, kernel=1, stride=2, groups=1):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 64, kernel, stride=stride, groups=groups))


def recipe(**settings):
    return Recipe(model="resnet8", data="digits", device="cpu", **({"precision": "float32"} | settings))


def laid_out_last(model):
    return all(
        layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in model if layer.kernel_size != (1, 1)
    )


@pytest.fixture(autouse=True)
def avx512(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.mark.parametrize("width", [4, 16, 60])
def test_where_a_quarter_of_the_width_crashes_the_run_is_contiguous_and_says_so(width):
    model = net(width)
    with pytest.warns(UserWarning, match="1: PyTorch's CPU kernel .* contiguous format"):
        found = in_memory_format(model, recipe(), 64)
    assert not found.channels_last and not laid_out_last(model)


@pytest.mark.parametrize(
    "model, side, settings",
    [
        (net(64), 64, {}),
        (net(16, kernel=3), 64, {}),
        (net(16, stride=1), 64, {}),
        (net(16, groups=4), 64, {}),
        (net(16), 32, {}),
        (net(16), 64, {"precision": "bfloat16"}),
    ],
    ids=["wide", "3 x 3", "not strided", "grouped", "small images", "bfloat16"],
)
def test_elsewhere_it_is_channels_last(model, side, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = in_memory_format(model, recipe(**settings), side)
    assert found.channels_last and laid_out_last(model)


def test_another_processor_has_another_kernel(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert in_memory_format(net(16), recipe(), 64).channels_last


def test_what_asks_for_neither_gets_neither():
    model = net(64)
    assert not in_memory_format(model, recipe(channels_last=False), 64).channels_last and not laid_out_last(model)
