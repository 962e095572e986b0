"""The Trainers of Lightning and transformers, and a loop with Accelerate, on several processes."""

import itertools
import os

import accelerate
import lightning
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

import morphogen
from morphogen.integrations.lightning import MorphogenCallback as LightningCallback
from morphogen.integrations.transformers import MorphogenCallback as TrainerCallback
from morphogen.machine import ranks, timing
from morphogen.methods import build_method
from morphogen.parts import Prune

from processes import be_rank, free_port, fresh
from traced import traced_once

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = [
    "NetworkExpansion(width=0.5, stages=3, operator='replicate')",
    "PruneTrain(ratio=0.9, interval=1, threshold=0.1)",
    "AutoProg(stages=2, search_epochs=1, dimensions=('depth',))",
]


class Block(nn.Module):
    """No batch norm: its statistics would be each rank's own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu() / 2


class Tower(nn.Sequential):
    def __init__(self):
        blocks = nn.Sequential(*(Block() for _ in range(4)))
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), blocks, nn.Flatten(), nn.Linear(8 * 16, 4))


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Tower()

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch["x"]), batch["labels"])

    def configure_optimizers(self):
        return sgd(self)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Tower()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def images():
    generator = torch.Generator().manual_seed(1)
    return [{"x": image, "labels": i % 4} for i, image in enumerate(torch.randn(64, 3, 8, 8, generator=generator))]


def probe(model):
    return morphogen.Probe(lambda x, y: F.cross_entropy(model(x), y), [(b["x"], b["labels"]) for b in batches(32)])


def batches(size):
    return DataLoader(images(), size)


def with_lightning(text, folder):
    count = int(os.environ.get("WORLD_SIZE", "1"))
    module = Module()
    callback = LightningCallback(build_method(text), "net", example=torch.zeros(4, 3, 8, 8), probe=probe(module.net))
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "use_distributed_sampler")
    settings = {"strategy": "ddp" if count > 1 else "auto", "devices": count, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=4, callbacks=[callback], **settings, **dict.fromkeys(off, False))
    mine = Subset(images(), range(trainer.global_rank, 64, count))  # Lightning's own sampler shuffles
    trainer.fit(module, DataLoader(mine, 8 // count))
    return module.net, callback.run


def with_transformers(text, folder):
    model = Classifier()
    example = {"x": torch.zeros(4, 3, 8, 8)}
    callback = TrainerCallback(build_method(text), example=example, probe=probe(model.net))
    settings = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_steps=12,
        max_grad_norm=0,
    )
    optimizers = sgd(model), None
    transformers.Trainer(model, settings, train_dataset=images(), optimizers=optimizers, callbacks=[callback]).train()
    return model.net, callback.run


def with_accelerate(text, folder):
    accelerate.state.AcceleratorState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True)
    model, example = Tower(), torch.zeros(4, 3, 8, 8)
    optimizer, method = sgd(model), build_method(text)
    run = morphogen.attach(model, optimizer, method, example=example, epochs=4, steps_per_epoch=8, probe=probe(model))
    loader = DataLoader(images(), 8 // accelerator.num_processes)
    wrapper, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(4):
        run.begin_epoch(epoch)
        for batch in loader:
            loss = F.cross_entropy(wrapper(batch["x"]), batch["labels"])
            accelerator.backward(run.penalised(loss))
            optimizer.step()
            optimizer.zero_grad()
    assert run.ended
    assert (wrapper is model) == (accelerator.num_processes == 1)
    return model, run


LOOPS = [with_lightning, with_transformers, with_accelerate]
ALL = [*itertools.product(LOOPS, enumerate(METHODS))]
EACH_ONCE = ALL[:: len(METHODS) + 1]
"""Every loop and every method; which of them meet matters little, and is tried at night."""


def medians(clock):
    """The times of a search's candidates, which are the machine's; here they are always the same."""
    return {number: 1.0 + number for number in clock.read()}


def trained(loop, text, folder):
    """The network, how its size changed, and the penalty's coefficient."""
    torch.manual_seed(0)
    net, run = loop(text, folder)
    prune = run.part(Prune)
    coefficient = 0.0 if prune is None else prune.pruner.coefficient
    return net, [(epoch, subnetwork.to_json()) for epoch, subnetwork in run.history], coefficient


def on_rank(rank, folder, port, cases):
    be_rank(rank, 2, port)
    torch.set_default_dtype(torch.float64)
    timing.StepClock.medians = medians
    for loop, (number, text) in cases:
        with traced_once():
            net, *rest = trained(loop, text, folder)
        ranks.check_same({"outcome": rest}, dict(net.named_parameters()))
        torch.save((net.state_dict(), *rest), folder / f"{loop.__name__}{number}.pt")


@pytest.mark.parametrize(
    "cases", [pytest.param(EACH_ONCE, id="each once"), pytest.param(ALL, id="all", marks=pytest.mark.nightly)]
)
def test_two_ranks_train_as_one_process_does(cases, tmp_path, monkeypatch, request):
    how = fresh()
    torch.multiprocessing.start_processes(on_rank, (tmp_path, free_port(), cases), nprocs=2, start_method=how)
    monkeypatch.setattr(timing.StepClock, "medians", medians)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)  # near zero, the penalty's gradient makes much of a rounding
    for loop, (number, text) in cases:
        weights, history, coefficient = torch.load(tmp_path / f"{loop.__name__}{number}.pt")
        net, alone, expected = trained(loop, text, tmp_path)
        assert history == alone and len(alone) > 1, (loop, text)
        assert coefficient == pytest.approx(expected, rel=1e-9), (loop, text)
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-9)
