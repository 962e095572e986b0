"""`fully_shard` (FSDP2): a sharded model grows as the plain one does in one process, and is sharded as it was again."""

import contextlib
import copy
import os
import re
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F

import morphogen
from morphogen.errors import ConfigError
from morphogen.machine import sharded

from processes import free_port, fresh
from traced import traced_once

EPOCHS, STEPS, IMAGES = 4, 2, 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8).eval()

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu() / 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.Sequential(*(Block() for _ in range(4))),
            nn.Linear(8, 5),
        )

    def train(self, mode=True):
        """Statistics would be each rank's own."""
        super().train(mode)
        for block in self.blocks:
            getattr(block, "norm", block).eval()
        return self

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).relu().mean((2, 3)))


def deep(**settings):
    return morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="interpolate", **settings)


METHODS = {
    "width and depth": lambda: deep(width=0.5),
    "depth and resolution": lambda: deep() + morphogen.ProgressiveResizing(),
    "a pretrained network": lambda: morphogen.GrowOnce(
        pretrained=True, at=0.5, width=0.5, depth=0.5, resolution=1.0, multiple_of=1
    ),
}


class Trained:
    """A model in a loop, sharded or not."""

    def __init__(self, method, mesh=None):
        torch.manual_seed(0)
        self.model, self.mesh = Net().double(), mesh
        if mesh is not None:
            for block in self.model.blocks:
                fully_shard(block, mesh=mesh, reshard_after_forward=False)
            fully_shard(self.model, mesh=mesh, ignored_params={self.model.stem.bias})
            self.model.set_gradient_divide_factor(float(mesh.size()))
            self.model.blocks[0].set_modules_to_forward_prefetch([self.model.blocks[3]])
        self.model.fc.bias.no_decay = True
        self.before = self.settings()
        decayed = [p for p in self.model.parameters() if not hasattr(p, "no_decay")]
        rest = [p for p in self.model.parameters() if hasattr(p, "no_decay")]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01)
        example = torch.randn(4, 3, 16, 16).double()
        self.run = morphogen.attach(self.model, self.optimizer, METHODS[method](), example=example, epochs=EPOCHS)

    def settings(self):
        """All that `fully_shard` was told, by the module's path."""
        found = {}
        for path, module in self.model.named_modules():
            if isinstance(module, FSDPModule):
                state = module._get_fsdp_state()
                call = sharded._call_of(state, self.mesh)
                found[path] = ({**call.settings}, {**call.carried}, len(call.ignored), len(call.prefetched[0]))
        return found

    def epoch(self, number, rank=0, ranks=1):
        self.run.begin_epoch(number)
        if self.mesh is not None:
            now = self.settings()
            assert {p: own[:3] for p, own in now.items()} == {p: self.before[p][:3] for p in now}
            held = [p for group in self.optimizer.param_groups for p in group["params"]]
            assert {*held} == {*self.model.parameters()} and len(held) == len({*held})
            assert {*held} >= {*self.optimizer.state}
            assert sum(hasattr(p, "to_local") for p in held) == len(held) - 1  # one is ignored
            assert self.model.fc.bias.no_decay and self.optimizer.param_groups[1]["params"] == [self.model.fc.bias]
        for step in range(STEPS):
            random = torch.Generator().manual_seed(100 * number + step)
            x = torch.randn(IMAGES, 3, 16, 16, generator=random, dtype=torch.float64)
            y = torch.randint(0, 5, (IMAGES,), generator=random)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x.chunk(ranks)[rank]), y.chunk(ranks)[rank]).backward()
            if self.mesh is not None:
                distributed.all_reduce(self.model.stem.bias.grad)  # FSDP leaves alone what it ignores
                self.model.stem.bias.grad /= ranks
            clipped = [p for p in self.model.parameters() if p is not self.model.stem.bias]
            nn.utils.clip_grad_norm_(clipped, 1.0)
            self.optimizer.step()


def alone(method):
    """The states of each epoch, in one process with no shards; where the last epoch ends, and its history."""
    trained, states = Trained(method), []
    for number in range(EPOCHS):
        trained.epoch(number)
        states.append(copy.deepcopy(trained.run.state_dict()))
    return states, [(epoch, one.to_json()) for epoch, one in trained.run.history]


def same(one, other):
    if isinstance(one, torch.Tensor):
        assert type(other) is type(one)
        torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert one == other


def work(rank, folder, ranks, methods, resumed):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    with traced_once():
        for method in methods:
            states = torch.load(Path(folder) / f"{method}.pt", weights_only=True)
            trained = Trained(method, mesh)
            first = 0
            if resumed:  # the state of one process, onto shards
                trained.run.load_state_dict(states[1])
                first = 2
            for number in range(first, EPOCHS):
                trained.epoch(number, rank, ranks)
                state = trained.run.state_dict()
                same(states[number]["trees"], state["trees"])
                same(states[number]["optimizers"], state["optimizers"])
                assert state["current"] == states[number]["current"] and state["history"] == states[number]["history"]
            trained.run.end()
            assert trained.settings() == trained.before
            if rank == 0:
                torch.save(state, Path(folder) / f"{method} of {ranks}.pt")
        if ranks == 2:  # shards of axis 1 must be even
            refused(mesh)
    distributed.destroy_process_group()


def refused(mesh):
    """With nothing changed."""
    for method, settings, found in (
        (morphogen.PruneTrain(), {}, "prune"),
        (morphogen.PruneEarly(multiple_of=1), {}, "narrow"),
        (morphogen.AutoProg(stages=2, search_epochs=1), {}, "search"),
        (morphogen.NetworkExpansion(depth=0.5, stages=2), {}, "average"),
        (deep(), {"ema": torch.optim.swa_utils.AveragedModel(nn.Linear(1, 1))}, "an averaged copy"),
    ):
        model = Net()
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ConfigError, match=f"sharded by fully_shard.*found .*{found}"):
            morphogen.attach(model, optimizer, method, example=torch.randn(2, 3, 16, 16), epochs=EPOCHS, **settings)
        assert isinstance(model, FSDPModule) and hasattr(model.fc.weight, "to_local")
    model = Net()
    fully_shard(
        model,
        mesh=mesh,
        shard_placement_fn=lambda p: torch.distributed.tensor.Shard(p.ndim - 1) if p.shape[-1] == 8 else None,
    )
    with pytest.raises(ConfigError, match=r"cannot be repeated.*shards of another axis than the first"):
        morphogen.attach(
            model, torch.optim.SGD(model.parameters(), 0.1), deep(), example=torch.randn(2, 3, 16, 16), epochs=4
        )
    assert isinstance(model, FSDPModule)


def together(folder, ranks, methods, resumed):
    for method in methods:
        states, history = alone(method)
        assert len(history) > 1
        torch.save(states, folder / f"{method}.pt")
    arguments = (str(folder), ranks, list(methods), resumed)
    multiprocessing.start_processes(work, arguments, nprocs=ranks, start_method=fresh())


def test_two_ranks_with_shards_grow_as_one_process_without(tmp_path):
    together(tmp_path, 2, ["width and depth", "a pretrained network"], resumed=False)


@pytest.mark.nightly
@pytest.mark.parametrize("resumed", [False, True])
def test_three_ranks_do_and_go_on_from_the_state_of_one_process(tmp_path, resumed):
    together(tmp_path, 3, METHODS, resumed)


def test_what_is_not_public_is_as_it_was_when_this_was_written():
    """A canary: names of PyTorch's that come and go with its versions."""
    source = Path(sharded.__file__).read_text()
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group, _fsdp_state

    text = "".join(Path(each.__file__).read_text() for each in (_fsdp_param, _fsdp_param_group, _fsdp_state))
    for name in re.findall(r"(?:state|group|parameter)\.(_\w+)", source):
        assert name in text or name in ("_modules", "_parameters"), name


def example(rank, folder, ranks):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in place.items()})
    text = (Path(__file__).parents[1] / "docs" / "sharded.md").read_text()
    with open(f"{folder}/{rank}", "w") as said, contextlib.redirect_stdout(said), traced_once():
        exec(compile(text.split("```python\n")[1].split("```")[0], "docs/sharded.md", "exec"), {})


@pytest.mark.nightly
def test_the_documentations_example_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    multiprocessing.start_processes(example, (str(tmp_path), 2), nprocs=2, start_method="spawn")
    said = (tmp_path / "0").read_text()
    counts = [int(line.split()[2]) for line in said.splitlines()]
    assert said == (tmp_path / "1").read_text() and len(counts) == 4 and counts[0] < counts[-1]
