"""DistributedDataParallel's switches on two ranks, across a growth, a pruning and a search: in every step each rank's
gradients are the mean of what the ranks' batches give in one process; or the wrapper is refused.
"""

import contextlib
import copy
import itertools

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import morphogen
from morphogen.machine import timing

from processes import fresh
from traced import traced_once


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.bn(self.conv(x)).relu() / 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3), nn.Sequential(*(Block() for _ in range(4)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).relu().mean((2, 3)))


METHODS = {
    "growth": lambda: morphogen.NetworkExpansion(width=0.5, depth=0.5, stages=2),
    "pruning": lambda: morphogen.PruneTrain(ratio=0.9, interval=1, threshold=0.15),
    "search": lambda: morphogen.AutoProg(stages=3, search_epochs=1, dimensions=("depth",)),
}
SETTINGS = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph, find_unused_parameters, gradient_as_bucket_view": {
        "static_graph": True,
        "find_unused_parameters": True,
        "gradient_as_bucket_view": True,
    },
    "broadcast_buffers": {"broadcast_buffers": False},
    "bucket_cap_mb": {"bucket_cap_mb": 0.001},
    "init_sync": {"init_sync": False},
    "no_sync": {},
    "static_graph, no_sync": {"static_graph": True},
    "join": {},
    "fp16_compress_hook": {},
    "powerSGD_hook": {},
    "process_group": {},
    "parameters_to_ignore": {},
}
ALWAYS = [("growth", "find_unused_parameters"), ("growth", "no_sync"), ("pruning", "static_graph"), ("search", "join")]
"""In every run; the others in the nightly one."""
REFUSED = [("search", "powerSGD_hook")]
EPOCHS = {"growth": 3, "pruning": 3, "search": 4}
BATCHES = 4


def batch(*seed):
    torch.manual_seed(hash(seed))
    return torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,))


class Switched:
    """One run of a method, with one switch."""

    def __init__(self, rank, method, switch, group):
        torch.manual_seed(0)
        self.rank, self.method, self.switch, self.model = rank, method, switch, Net()
        if switch == "parameters_to_ignore":
            self.model.stem.requires_grad_(False)
            names = ["stem.weight", "stem.bias"]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, names)
        momentum = 0.0 if switch == "join" else 0.9  # the moments of a rank that has left the join stand still
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=momentum)
        probe = morphogen.Probe(lambda x, y: F.cross_entropy(self.model(x), y), [batch(99)])
        example, (name, epochs) = batch(0)[0], (switch, EPOCHS[method])
        self.run = morphogen.attach(
            self.model, self.optimizer, METHODS[method](), example=example, epochs=epochs, probe=probe
        )
        settings = SETTINGS[name] | ({"process_group": group} if switch == "process_group" else {})
        self.wrapper = DistributedDataParallel(self.model, **settings)
        self.called = []
        self.wrapper.register_forward_hook(lambda *_: self.called.append(1))
        if switch == "fp16_compress_hook":
            self.wrapper.register_comm_hook(None, fp16_compress_hook)
        if switch == "powerSGD_hook":  # it compresses from the second step on, which leaves no more than a likeness
            self.wrapper.register_comm_hook(PowerSGDState(None, 8, start_powerSGD_iter=2), powerSGD_hook)
        self.sizes, self.steps = set(), 0

    def train(self):
        for epoch in range(EPOCHS[self.method]):
            before = {name: b.clone() for name, b in self.model.named_buffers()}
            receipt = self.run.begin_epoch(epoch)
            self.statistics_stay(before, receipt)
            self.sizes.add(self.run.network.current)
            uneven = self.switch == "join"
            with self.wrapper.join() if uneven else contextlib.nullcontext():
                for number in range(BATCHES - (uneven and self.rank == 1)):
                    self.step(epoch, number)
        self.run.end()
        assert len(self.sizes) > 1, (self.method, self.switch)
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def statistics_stay(self, before, receipt):
        """Each rank's own, bit for bit."""
        for name, change in (receipt.changes if receipt else {}).items():
            if "running" in name:
                assert torch.equal(change.tensor, change.map.carry(before[name], "var" in name)), name

    def step(self, epoch, number):
        micro = 2 if "no_sync" in self.switch else 1
        if "static_graph" in self.switch and number == 0:  # PyTorch learns the graph in a step that averages
            micro = 1
        self.optimizer.zero_grad()
        expected = self.expected(epoch, number, micro)
        for part in range(micro):
            x, y = batch(epoch, number, part, self.rank)
            with self.wrapper.no_sync() if part < micro - 1 else contextlib.nullcontext():
                self.run.penalised(F.cross_entropy(self.wrapper(x), y)).backward()
        within = {"fp16_compress_hook": 1e-2, "powerSGD_hook": None}.get(self.switch, 1e-5)
        for name, parameter in self.model.named_parameters():
            wanted, found = expected[name], parameter.grad
            if wanted is None or found is None:
                assert wanted is None or not wanted.any(), (self.method, self.switch, epoch, number, name)
            elif within is not None or self.wrapper_is_fresh(number):
                where = f"{self.method}, {self.switch}, epoch {epoch}, step {number}, {name}: "
                near = {"rtol": within or 1e-5, "atol": within or 1e-5}
                torch.testing.assert_close(found, wanted, **near, msg=lambda text, where=where: where + text)
        self.optimizer.step()
        self.steps += 1

    def wrapper_is_fresh(self, number):
        return number == 0 and self.run.receipt is not None

    def expected(self, epoch, number, micro):
        """The mean of the ranks' gradients, by a model that knows no wrapper."""
        total = {name: None for name, _ in self.model.named_parameters()}
        model = self.model
        parameters = [p for p in model.parameters() if p.requires_grad]
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        statistics = copy.deepcopy({name: b for name, b in model.named_buffers()})
        for rank in range(2 - (self.switch == "join" and number == BATCHES - 1)):
            for part in range(micro):
                x, y = batch(epoch, number, part, rank)
                loss = self.run.penalised(F.cross_entropy(model(x), y))
                for name, grad in zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if grad is not None:
                        total[name] = grad / 2 if total[name] is None else total[name] + grad / 2
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
        return total


def work(rank, folder, cases):
    torch.set_num_threads(1)
    timing.StepClock.medians = lambda clock: {number: 1.0 + number for number in clock.read()}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    everybody = distributed.new_group([0, 1])
    with traced_once():
        for method, switch in cases:
            weights = Switched(rank, method, switch, everybody).train()
            both = [None, None]
            distributed.all_gather_object(both, weights)
            assert all(torch.equal(value, both[1][name]) for name, value in both[0].items()), (method, switch)
    distributed.destroy_process_group()


def several(work, folder, *more):
    multiprocessing.start_processes(work, (str(folder), *more), nprocs=2, start_method=fresh())


def test_gradients_are_the_mean_of_the_ranks_in_every_step(tmp_path):
    several(work, tmp_path, ALWAYS)


@pytest.mark.nightly
def test_gradients_are_the_mean_with_every_switch_and_every_kind_of_morph(tmp_path):
    several(work, tmp_path, [case for case in itertools.product(METHODS, SETTINGS) if case not in ALWAYS + REFUSED])
