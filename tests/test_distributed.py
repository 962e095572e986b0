"""Two ranks on the CPU: whatever each measures on its own, they sample, search, extract and prune the same."""

import copy
from unittest import mock

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import morphogen
from morphogen.parts import Prune, Search
from morphogen.search import searching
from morphogen.search.measure import search

from nets import Residual, Tower, image
from planted import sized
from processes import fresh
from traced import traced_once

LOSSES = ({2: 1.0, 3: 1.1, 4: 2.0}, {2: 4.0, 3: 1.0, 4: 5.0})
"""By the number of blocks. The first rank alone would choose two blocks; the mean of both chooses three."""


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for recycle in (True, False):
        with traced_once():
            torch.save(train(rank, recycle), f"{folder}/search {recycle}{rank}.pt")
    with traced_once():
        torch.save(restore(rank), f"{folder}/restore{rank}.pt")
        torch.save(unfreeze(rank), f"{folder}/unfreeze{rank}.pt")
        torch.save(search_shares(rank), f"{folder}/search shares{rank}.pt")
    mocks = {name: mock.Mock(side_effect=getattr(distributed, name)) for name in COLLECTIVES.split()}
    for proximal in (True, False):
        result = prune(rank, proximal, lambda: mock.patch.multiple(distributed, **mocks))
        calls = {name: call.call_count for name, call in mocks.items()}
        torch.save((*result, calls), f"{folder}/prune {proximal}{rank}.pt")
    distributed.destroy_process_group()


def train(rank: int, recycle: bool):
    torch.manual_seed(0)
    model = Tower(rate=0.0)
    optimizer = torch.optim.AdamW(model.parameters())
    times = []

    def measured(supernet, probe, seconds, *rest):
        times.append(dict(seconds))
        return search(supernet, probe, {i: 1.0 + rank * 0.001 * i for i in seconds}, *rest)

    searching.search = measured

    def loss(images, labels):
        output, (_, blocks, _) = sized(wrapped, images, model)
        return 0 * output.sum() + LOSSES[rank][blocks] * (1 + labels / 1000)

    scoring = "fitted" if recycle else "literal"
    method = morphogen.AutoProg(stages=3, search_epochs=1, dimensions=("depth",), recycle=recycle, scoring=scoring)
    probe = morphogen.Probe(loss, [(image(2), i) for i in range(2)])
    torch.manual_seed(1 + rank)  # each its own data
    data = [image(4) for _ in range(4)]
    run = morphogen.attach(model, optimizer, method, example=image(4), epochs=6, steps_per_epoch=4, probe=probe)
    wrapped, chosen, sampled, epoch = DistributedDataParallel(model), [], [], 0
    part = run.part(Search)
    while epoch < 6:
        run.begin_epoch(epoch)
        chosen.append(run.network.current.to_json())
        for images in data:
            sampled.append(run.runs(part.searching.steps if part.searching else 0).to_json())
            optimizer.zero_grad()
            wrapped(images).square().mean().backward()
            optimizer.step()
        epoch = run.next_epoch(epoch)
    run.end()
    seen = [[(c.loss, c.seconds) for c in found.candidates] for found in part.searches]
    return chosen, sampled, seen, model.state_dict(), times


@pytest.mark.skipif(not distributed.is_available(), reason="no torch.distributed")
def test_two_ranks_sample_search_extract_and_prune_the_same(tmp_path):
    multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method=fresh())
    for recycle in (True, False):
        agree(*(torch.load(tmp_path / f"search {recycle}{rank}.pt") for rank in (0, 1)), recycle)
    one, two = (torch.load(tmp_path / f"unfreeze{rank}.pt", weights_only=False) for rank in (0, 1))
    for (_, mine), (_, theirs) in zip(one, two, strict=True):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert not one[0][1]["stem.weight"].requires_grad and one[1][1]["stem.weight"].requires_grad
    assert not torch.equal(one[0][1]["stem.weight"], one[1][1]["stem.weight"])  # trained in the end
    one, two = (torch.load(tmp_path / f"search shares{rank}.pt", weights_only=False) for rank in (0, 1))
    assert one[0] == two[0] and len(one[0]) >= 1
    assert all(torch.equal(value, two[1][name]) or "running" in name for name, value in one[1].items())
    the_same_channels_left_and_returned(*(torch.load(tmp_path / f"restore{rank}.pt") for rank in (0, 1)))
    prune_the_same_and_talk_once_while_they_train(tmp_path)


def restore(rank: int):
    """Each rank makes its own weights, and DistributedDataParallel makes them rank 0's, when `attach` has looked."""
    torch.manual_seed(rank)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.GrowOnce(pretrained=True, width=0.5, at=0.5, resolution=1.0, multiple_of=1)
    run = morphogen.attach(model, optimizer, method, example=image(4), epochs=2, steps_per_epoch=1)
    before, wrapped = model.state_dict(), DistributedDataParallel(model)
    before = {name: tensor.clone() for name, tensor in before.items()}
    for epoch in range(2):
        run.begin_epoch(epoch)
        if epoch == 0:
            small = run.network.current
            wrapped(image(4)).square().mean().backward()
            optimizer.step()
    returned = {name: model.state_dict()[name] for name in before}
    return small.to_json(), small.channels, before, returned


def unfreeze(rank: int):
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.ProgressiveUnfreezing(shares=(0.3, 1.0))
    run = morphogen.attach(model, optimizer, method, example=image(4), epochs=2, steps_per_epoch=2)
    wrapped, seen = DistributedDataParallel(model), []
    torch.manual_seed(1 + rank)  # each its own data
    for epoch in range(2):
        run.begin_epoch(epoch)
        for _ in range(2):
            optimizer.zero_grad()
            wrapped(image(4)).square().mean().backward()
            optimizer.step()
        seen.append((epoch, copy.deepcopy(dict(model.named_parameters()))))
    return seen


def search_shares(rank: int):
    """The loss goes through the wrapper, whose reducer takes no part in what is compared."""
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.AutoProgZero(shares=(0.3, 0.6, 1.0), stages=3)
    numbers = torch.Generator().manual_seed(1 + rank)  # each its own data
    data = [(torch.randn(4, 3, 8, 8, generator=numbers), None) for _ in range(2)]
    probe = morphogen.Probe(lambda images, _: wrapped(images).square().mean(), data)
    run = morphogen.attach(model, optimizer, method, example=image(4), epochs=6, steps_per_epoch=2, probe=probe)
    wrapped = DistributedDataParallel(model)
    for epoch in range(6):
        run.begin_epoch(epoch)
        for images, _ in data:
            optimizer.zero_grad()
            wrapped(images).square().mean().backward()
            optimizer.step()
    seen = [(found.chosen, found.candidates) for found in run.part(morphogen.parts.SearchShares).searches]
    return seen, model.state_dict()


def the_same_channels_left_and_returned(one, two):
    assert one[0] == two[0] and any(units != tuple(range(len(units))) for units in one[1].values())
    for name, value in one[3].items():
        assert torch.equal(value, two[3][name]) or "running" in name, name
        if name == "conv1.weight":  # what was out is what it was
            (_, inner) = one[1].values()
            out = [unit for unit in range(len(value)) if unit not in inner]
            assert torch.equal(value[out], one[2][name][out])


def agree(one, two, recycle):
    assert one[0] == two[0] and one[1] == two[1] and one[2] == two[2]
    assert len({*one[1]}) == 3 and len(one[2]) == 2
    blocks = [len(morphogen.SubNetwork.from_json(text).blocks["blocks"]) for text in one[0]]
    # A line through three losses, the least in the middle, tells none apart: Prog's. By themselves: three.
    assert blocks == ([4, 2, 4, 3, 4, 4] if recycle else [4, 3, 3, 4, 3, 3, 4, 4])
    means = [loss for loss, _ in one[2][0]]
    assert means == pytest.approx([2.5 * 1.0005, 1.05 * 1.0005, 3.5 * 1.0005])
    assert [seconds for _, seconds in one[2][0]] == pytest.approx([1.0, 1.001, 1.002])  # the slower rank's
    assert one[4] != two[4]  # what each measured itself
    for name, value in one[3].items():
        if "running" not in name:  # statistics are each rank's own
            assert torch.equal(value, two[3][name]), name


COLLECTIVES = "all_reduce all_gather all_gather_object broadcast broadcast_object_list barrier reduce gather scatter"


def prune(rank: int, proximal: bool, counting):
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    method = morphogen.PruneTrain(ratio=0.9, interval=1, threshold=3e-2, proximal=proximal)
    run = morphogen.attach(model, optimizer, method, example=image(4), epochs=3, hooks=False)
    torch.manual_seed(1 + rank)  # each its own data
    losses = []
    for epoch in range(3):
        run.begin_epoch(epoch)
        wrapped = DistributedDataParallel(model)
        for _ in range(8):
            loss = (1 + rank) * torch.nn.functional.cross_entropy(wrapped(image(4)), torch.randint(10, (4,)))
            losses.append(loss.item())
            optimizer.zero_grad()
            with counting():
                run.penalised(loss).backward()
            optimizer.step()
            with counting():
                run.end_step()
    run.end()
    history = [(epoch, subnetwork.to_json()) for epoch, subnetwork in run.history]
    return (
        run.part(Prune).pruner.coefficient,
        losses,
        history,
        {name: p.detach() for name, p in model.named_parameters()},
    )


def prune_the_same_and_talk_once_while_they_train(tmp_path):
    torch.manual_seed(0)
    model = Residual()
    penalty = morphogen.GroupLasso(morphogen.trace(model, image()))().item()
    for runs, proximal in enumerate((True, False), 1):
        one, two = (torch.load(tmp_path / f"prune {proximal}{rank}.pt") for rank in (0, 1))
        assert one[0] == two[0] == pytest.approx(9 * (one[1][0] + two[1][0]) / 2 / penalty)
        assert one[1][0] != two[1][0]
        assert one[2] == two[2] and len(one[2]) > 1
        assert all(torch.equal(value, two[3][name]) for name, value in one[3].items())
        for calls in (one[4], two[4]):
            assert calls.pop("all_reduce") == runs and not any(calls.values())
