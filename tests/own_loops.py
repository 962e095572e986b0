"""Loops of one's own around a run, as small as they can be."""

import io

import torch
from torch import nn

import morphogen

from nets import Tower, image

WIDE = morphogen.NetworkExpansion(width=0.5, stages=2)
DEEP = morphogen.Prog(stages=2)
FOLLOWED = morphogen.Prog(stages=2, decay=0.5)  # so few steps need a decay to have an average that is not the weights


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def seeded(make=Tower, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def step(model, optimizer, images=None, loss_of=lambda loss: loss) -> None:
    optimizer.zero_grad()
    loss_of(model(image(4) if images is None else images).square().mean()).backward()
    optimizer.step()


def attached(method, make=Tower, epochs=4, optimizer=sgd, **settings):
    model = seeded(make)
    its = optimizer(model)
    return model, its, morphogen.attach(model, its, method, example=image(4), epochs=epochs, **settings)


def quiet_run(method, make=Tower, epochs=4, hooks=True, steps=3):
    """A whole run, by hooks or by all calls."""
    model, optimizer, run = attached(method, make, epochs, steps_per_epoch=steps, hooks=hooks)
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        run.begin_epoch(epoch)
        for _ in range(steps):
            images = image(4)
            if hooks:
                step(model, optimizer, images, run.penalised)
            else:
                step(model, optimizer, run.begin_step(images), run.penalised)
                run.end_step()
    run.end()
    return model


def saved(value):
    """Through a file, as scripts do it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
