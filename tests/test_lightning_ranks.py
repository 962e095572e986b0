"""Lightning's Trainer on several processes."""

import os
import socket

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import morphogen
from morphogen import ranks, timing
from morphogen.integrations.lightning import MorphogenCallback
from morphogen.methods import build_method

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = [
    "NetworkExpansion(width=0.5, stages=3, operator='replicate')",
    "PruneTrain(ratio=0.9, interval=1, threshold=0.02)",
    "AutoProg(stages=2, search_epochs=1, dimensions=('depth',))",
]


class Block(nn.Module):
    """No batch norm: its statistics would be each rank's own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu() / 2


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        head = nn.Flatten(), nn.Linear(8 * 16, 4)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Sequential(*(Block() for _ in range(4))), *head
        )

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def medians(clock):
    """The times of a search's candidates, which are the machine's; here they are always the same."""
    return {number: 1.0 + number for number in clock.read()}


def trained(text, **settings):
    """The module, and how its size changed."""
    torch.manual_seed(0)
    module, generator = Module(), torch.Generator().manual_seed(1)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    data = [(image, i % 4) for i, image in enumerate(images)]
    probe = morphogen.Probe(lambda x, y: F.cross_entropy(module.net(x), y), list(DataLoader(data, 32)))
    callback = MorphogenCallback(build_method(text), "net", example=images[:4], probe=probe)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", callbacks=[callback], **quiet, **settings)
    trainer.fit(module, DataLoader(data, 8 // trainer.world_size))
    assert callback.run is not None
    return module, [(epoch, subnetwork.to_json()) for epoch, subnetwork in callback.run.history]


def on_rank(rank, folder, port):
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "a test"}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    timing.StepClock.medians = medians
    for number, text in enumerate(METHODS):
        strategy = DDPStrategy(find_unused_parameters=text.startswith("AutoProg"))
        module, history = trained(text, strategy=strategy, devices=2)
        ranks.check_same("the module", [*module.parameters()], history)
        torch.save((module.net.state_dict(), history), folder / f"{number}.pt")


def test_ranks_train_as_one_process_does(tmp_path, monkeypatch):
    monkeypatch.setattr(timing.StepClock, "medians", medians)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_rank, (tmp_path, port), nprocs=2)
    for number, text in enumerate(METHODS):
        weights, history = torch.load(tmp_path / f"{number}.pt")
        module, alone = trained(text)
        assert history == alone and len(alone) > 1, text
        for name, tensor in module.net.state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
