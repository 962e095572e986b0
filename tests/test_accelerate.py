"""A loop with Accelerate goes on from its checkpoints."""

import accelerate
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import morphogen
from morphogen.integrations.accelerate import carry


class Rank(nn.Module):
    """No batch norm: its statistics would be each rank's own."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


def accelerated(folder, until=2):
    """Two epochs; those before `until` are left to the state in the folder."""
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    model = Rank()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = morphogen.NetworkExpansion(width=0.5, stages=2, operator="replicate")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    run = morphogen.attach(model, optimizer, method, example=images, epochs=2)
    loader = DataLoader([(image, i % 4) for i, image in enumerate(images)], 8 // accelerator.num_processes)
    wrapper, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    carry(accelerator, run)
    begin = 0
    if (folder / "state").exists():
        accelerator.load_state(str(folder / "state"))
        begin = 1
    for epoch in range(begin, until):
        run.begin_epoch(epoch)
        for x, y in loader:
            accelerator.backward(F.cross_entropy(wrapper(x), y))
            optimizer.step()
            optimizer.zero_grad()
    if until == 1:
        accelerator.save_state(str(folder / "state"))
    return model


def fresh_accelerator():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_saves_and_loads_the_run(tmp_path):
    fresh_accelerator()
    expected = accelerated(tmp_path).state_dict()
    fresh_accelerator()
    accelerated(tmp_path, until=1)
    assert (tmp_path / "state" / "morphogen.pt").exists() and not (tmp_path / "state" / "model.safetensors").exists()
    fresh_accelerator()
    found = accelerated(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_is_shared_out_is_refused():
    fresh_accelerator()
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.state.distributed_type = accelerate.DistributedType.DEEPSPEED
    with pytest.raises(morphogen.ConfigError, match=r"carry: .*expected one process.*found .*DEEPSPEED"):
        carry(accelerator, None)
    fresh_accelerator()
