"""What a user writes around AutoProg, on three networks; searches whose choices are planted."""

import dataclasses

import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch.nn import functional as F

import morphogen
from morphogen.parts import Average, Search
from morphogen.search.measure import search

from checks import assert_optimizer_holds_model
from nets import Tower, image


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=10
    )


def resnet():
    return timm.create_model("resnet18", num_classes=10, layers=(1, 3, 2, 1), channels=(8, 8, 16, 16))


NETS = {
    "tower": (Tower, 8, "blocks", ("conv1.weight", "fc.bias")),
    "vit": (vit, 32, "blocks", ("patch_embed.proj.weight", "head.bias", "pos_embed")),
    "resnet": (resnet, 32, "layer2", ("conv1.weight", "fc.bias", "layer2.0.conv1.weight")),
}
STEPS = 6


def plant_choices(monkeypatch, *numbers):
    """The searches choose these candidates, whatever they measure."""
    left = iter(numbers)

    def planted(*arguments):
        found = search(*arguments)
        return dataclasses.replace(found, chosen=next(left) % len(found.candidates))

    monkeypatch.setattr("morphogen.search.searching.search", planted)


class Loop:
    """What a user writes."""

    def __init__(self, name, method, epochs, steps=STEPS, ema=None, make_optimizer=torch.optim.AdamW, **settings):
        make, self.side, self.stack, self.always = NETS[name]
        self.model, self.epochs, self.steps = make(), epochs, steps
        self.make = make
        self.optimizer = make_optimizer(self.model.parameters(), lr=1e-3)
        self.ema = ema and ema(self.model)
        self.calls = self.model
        self.batch = (image(4, self.side), torch.randint(10, (4,)))
        self.context = torch.enable_grad
        self.visited, self.receipts, self.taken = [], [], 0
        settings = {"probe": morphogen.Probe(self.loss, [self.batch]), "start_epoch": 0} | settings
        self.run = morphogen.attach(
            self.model,
            self.optimizer,
            method,
            example=self.batch[0],
            epochs=epochs,
            steps_per_epoch=steps,
            ema=self.ema,
            **settings,
        )

    @property
    def searching(self):
        search = self.run.part(Search)
        return None if search is None else search.searching

    @property
    def searches(self):
        return self.run.part(Search).searches

    @property
    def momentum(self):
        average = self.run.part(Average)
        return None if average is None else average.network

    def loss(self, images, labels):
        with self.context():
            return F.cross_entropy(self.calls(images), labels)

    def step(self):
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(self.run.begin_step(self.batch[0]), self.batch[1]).backward()
        self.optimizer.step()
        self.run.end_step()
        self.taken += 1
        if self.ema is not None:
            (self.ema.update if isinstance(self.ema, ModelEmaV3) else self.ema.update_parameters)(self.model)

    def epoch(self, number):
        self.receipts.append(self.run.begin_epoch(number))
        self.visited.append(number)
        for _ in range(self.steps):
            self.step()
        return self.run.next_epoch(number)

    def finish(self):
        number = 0
        while number < self.epochs:
            number = self.epoch(number)
        self.run.end()
        return self

    def assert_whole(self):
        """The user's own network again, as it was before."""
        run, fresh = self.run, self.make()
        assert run.network.current == run.network.dense == run.history[-1][1]
        assert self.searching is None and self.momentum is None
        assert not self.model._forward_hooks and not self.model._forward_pre_hooks
        assert not any("forward" in module.__dict__ for module in self.model.modules())
        assert [*self.model.state_dict()] == [*fresh.state_dict()]
        fresh.load_state_dict(self.model.state_dict(), strict=True)
        assert_optimizer_holds_model(self.model, self.optimizer)
        with torch.no_grad():
            x = self.batch[0]
            assert torch.allclose(fresh.eval()(x), self.model.eval()(x), atol=1e-6)
