"""The memory of a training step: counted by hand, and against what PyTorch's profiler saw a CPU allocate."""

import random

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import morphogen
from morphogen.cost.memory import Allocations, StepMemory, bytes_of, kept_tensors
from morphogen.errors import ConfigError
from morphogen.train.cifar_resnet import CIFAR_RESNETS

from nets import Tower, image, small

SCALARS = 8
"""Bytes of the sum of the outputs and of its gradient."""


class Two(nn.Module):
    """Two 1 x 1 convolutions, so that all there is can be counted; 8 channels between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def step_bytes(images: int, channels: int, state: int) -> int:
    """Of `Two` on 4 x 4 pixels, at its most: behind relu in the backward pass. `state` tensors for each weight."""
    first, second = 4 * 3 * channels, 4 * channels * 2
    pixels = 4 * 16 * images
    # weights, state, the second gradient; images and outputs; relu's output and the gradients behind it and before
    return (1 + state) * (first + second) + second + pixels * (3 + 2 + 3 * channels) + SCALARS


def traced(optimizer=torch.optim.SGD, **settings):
    model = Two()
    made = optimizer(model.parameters(), lr=0.1, **settings)
    net = morphogen.trace(model, image(2, 4))
    return net, made


@pytest.mark.parametrize("channels", [8, 4])
@pytest.mark.parametrize(
    ("optimizer", "settings", "state"),
    [(torch.optim.SGD, {}, 0), (torch.optim.SGD, {"momentum": 0.9}, 1), (torch.optim.Adam, {}, 2)],
)
def test_a_step_counted_by_hand(channels, optimizer, settings, state):
    net, made = traced(optimizer, **settings)
    memory = StepMemory(net, [made])
    subnetwork = net.subnetwork(width=channels / 8)
    steps = 8 if optimizer is torch.optim.Adam else 0  # Adam counts the steps of each weight
    for images in (4, 8, 12, 7):
        assert memory.bytes(subnetwork, images) == step_bytes(images, channels, state) + steps
    copied = StepMemory(net, [made], copies=2)
    assert copied.bytes(subnetwork, 4) == step_bytes(4, channels, state) + steps + 2 * 4 * 5 * channels
    assert not made.state and net.current == net.dense and all(p.grad is None for p in net.model.parameters())


def test_storages_count_once_and_until_they_go():
    base = torch.zeros(10)
    assert bytes_of([base, base[2:], base.view(2, 5)]) == 40
    with Allocations([base]) as allocations:
        other = base[1:] + 1
        assert allocations.live == allocations.peak == 76
        del other
        base.add_(1)
    assert allocations.live == 40 and allocations.peak == 76


def slim_resnet():
    return CIFAR_RESNETS["resnet8"](width=32)


def wide_resnet():
    return timm.create_model("resnet50", layers=(1, 1, 1, 1), num_classes=10)


def deit():
    return small("deit_tiny_patch16_224", embed_dim=96)[0]


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


@pytest.mark.parametrize(
    ("make", "side", "images", "narrow", "optimizer", "autocast", "least"),
    [
        (slim_resnet, 32, 32, "width", sgd, None, 0.94),
        (slim_resnet, 32, 32, "width", sgd, torch.bfloat16, 0.94),
        # 8 million weights for 16 small images: the convolutions' workspaces, which are not seen, weigh most here
        pytest.param(wide_resnet, 96, 16, "width", sgd, None, 0.82, marks=pytest.mark.nightly),
        pytest.param(deit, 32, 32, "depth", torch.optim.AdamW, None, 0.92, marks=pytest.mark.nightly),
        pytest.param(deit, 32, 32, "depth", torch.optim.AdamW, torch.bfloat16, 0.92, marks=pytest.mark.nightly),
    ],
)
def test_the_model_agrees_with_what_a_cpu_allocates(make, side, images, narrow, optimizer, autocast, least):
    found = []
    for share in (1.0, 0.5):
        model = make().train().to(memory_format=torch.channels_last)
        made = optimizer(model.parameters())
        net = morphogen.trace(model, image(2, side))
        memory = StepMemory(net, [made], autocast=autocast)
        subnetwork = net.subnetwork(**{narrow: share})
        morphogen.morph(net, subnetwork, optimizer=made)
        for count in (images, 3 * images):
            batch = image(count, side).contiguous(memory_format=torch.channels_last)
            found.append(memory.bytes(subnetwork, count) / measured(model, made, batch, autocast))
    assert all(least <= share <= 1.02 for share in found), found


def measured(model, optimizer, images, autocast):
    """Bytes at the peak of a step."""

    def step():
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = model(images).float().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    before = bytes_of([*kept_tensors(model, optimizer), images])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = before
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_modelling_draws_no_random_numbers_and_runs_nobodys_hooks():
    class Noisy(Tower):
        def forward(self, x):
            if self.training:
                np.random.rand(), random.random()
            return super().forward(x)

    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("a hook ran"))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    net = morphogen.trace(model, image())
    model.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    memory = StepMemory(net, [optimizer])

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    memory.bytes(net.dense, 4)
    assert states() == before and scheduler.last_epoch == 0


def test_weights_without_gradient_and_blocks_that_are_out_need_no_state():
    model = Tower(rate=0.0)
    model.conv1.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    net = morphogen.trace(model, image())
    memory = StepMemory(net, [optimizer])
    whole, half = memory.bytes(net.dense, 2), memory.bytes(net.subnetwork(depth=0.5), 2)
    block = 4 * (12 * 12 * 9 + 12 + 2 * 12)
    assert whole - half > 2 * 4 * block  # two blocks: weights, gradients and two moments, activations on top
    morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
    assert (memory.bytes(net.dense, 2), memory.bytes(net.current, 2)) == (whole, half)


def test_an_optimizer_that_needs_more_than_shapes_is_refused():
    class Looking(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.nonzero()
                if float(parameter.grad.sum()) > 0:
                    return

    net, optimizer = traced(Looking)
    with pytest.raises(ConfigError, match="Two: the memory of a training step cannot be modelled"):
        StepMemory(net, [optimizer]).bytes(net.dense, 4)
