"""What leaves a pretrained network comes back as it was, and what stays are its most important channels."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.errors import CheckpointError, ConfigError, MorphError
from morphogen.schedule.importance import by_importance, importance

from checks import randomise_statistics, take_steps
from nets import Residual, Tower, deit, image


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def alive_of(net, subnetwork, name, dense):
    """What of a dense tensor a sub-network has."""
    return net.structure.tensors[name].part(dense, net.structure.alive_mask(subnetwork))


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_and_blocks_come_back_as_they_were_when_they_left(channels_last):
    """Out go channels, then a block, then more channels; all come back: each entry has its value of that moment."""
    model = Tower(4).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    randomise_statistics(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    net = morphogen.trace(model, image())
    ways = {"operator": "restore", "depth_operator": "restore", "optimizer": optimizer}
    group, stack = net.groups[0].name, net.stacks[0].name
    sizes = [
        net.subnetwork(alive={group: range(1, 12, 2)}),
        net.subnetwork(alive={group: range(1, 12, 2)}, blocks={stack: [0, 1, 3]}),
        net.subnetwork(alive={group: [1, 7]}, blocks={stack: [0, 3]}),
        net.subnetwork(alive={group: [0, 1, 2, 7]}, blocks={stack: [0, 1, 3]}),
        net.dense,
    ]
    expected, now = state_of(model), net.current
    for size in sizes:
        take_steps(model, optimizer, image())
        for name, tensor in model.state_dict().items():  # what is alive is what it is, what is out is what it was
            if name in net.structure.tensors and tensor.ndim:
                places = net.structure.tensors[name].places(net.structure.alive_mask(now))
                where = [torch.arange(n) for n in expected[name].shape]
                for dim, place in places:
                    where[dim] = place
                expected[name][torch.meshgrid(*where, indexing="ij")] = tensor
        morphogen.morph(net, size, **ways)
        now = size
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, alive_of(net, now, name, expected[name])), (name, size)
    assert net.away == {}  # nothing is kept of what is back
    take_steps(model, optimizer, image())


def test_what_returns_begins_without_moments_and_in_averages_as_it_is():
    model = Residual()
    optimizer, ema = torch.optim.AdamW(model.parameters(), 1e-2), torch.optim.swa_utils.AveragedModel(model)
    net = morphogen.trace(model, image())
    before = state_of(model)
    take_steps(model, optimizer, image())
    left = model.conv1.weight.detach().clone()
    morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer, ema=ema, operator="restore")
    take_steps(model, optimizer, image())
    morphogen.morph(net, net.dense, optimizer=optimizer, ema=ema, operator="restore")
    half = model.conv1.out_channels // 2
    assert torch.equal(model.conv1.weight[half:], left[half:]) and not torch.equal(left, before["conv1.weight"])
    assert torch.equal(ema.module.conv1.weight[half:], left[half:])
    into = model.stem.out_channels // 2
    assert torch.equal(ema.module.conv1.weight[:half, :into], before["conv1.weight"][:half, :into])
    assert optimizer.state[model.conv1.weight]["exp_avg"][half:].eq(0).all()


def test_each_entry_is_kept_once_and_on_the_cpu():
    model = Tower(4, channels=12)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5), operator="restore")
    kept = sum(tensor.numel() for tensor, _ in net.away.values())
    assert kept <= sum(t.numel() for t in [*Tower(4).parameters(), *Tower(4).buffers()])
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor, _ in net.away.values())
    assert "fc.bias" not in net.away  # nothing of it leaves
    whole = net.away["conv1.weight"][0].clone()
    take_steps(model, torch.optim.SGD(model.parameters(), 0.1), image())
    assert torch.equal(net.away["conv1.weight"][0], whole)


def test_tables_of_blocks_that_leave_and_return_at_full_resolution_are_exact():
    """A Swin's tables of relative positions follow the resolution."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=8, depths=(4,), num_heads=(2,)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before = state_of(model)
    net = morphogen.trace(model, torch.randn(2, 3, 32, 32))
    (stack,) = net.stacks
    small = net.subnetwork(depth=0.5, resolution=(8, 8))
    morphogen.morph(net, small, depth_operator="restore")
    morphogen.morph(net, net.dense, depth_operator="restore")
    out = {path for i in range(stack.size) if i not in small.blocks[stack.name] for path in stack.units[i]}
    names = [name for name in before if any(name.startswith(path + ".") for path in out)]
    tables = [name for name in names if name.endswith("relative_position_bias_table")]
    assert tables and all(torch.equal(model.state_dict()[name], before[name]) for name in names)


def test_restore_wants_to_have_seen_what_left():
    net = morphogen.trace(Residual(), image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    with pytest.raises(MorphError, match=r"some left before.*Name `restore` in the morph that makes the network small"):
        morphogen.morph(net, net.dense, operator="restore")
    assert net.away is None
    morphogen.morph(net, net.dense)
    morphogen.morph(net, net.subnetwork(width=0.5), operator="restore")  # whole again: all of it is seen to leave


def test_a_morph_that_fails_keeps_what_was_kept():
    net = morphogen.trace(Tower(4), image())
    morphogen.morph(net, net.subnetwork(width=0.5), operator="restore")
    away = dict(net.away)

    def wrong(gap):
        return gap.old

    with pytest.raises(MorphError, match="unfit"):
        target = net.subnetwork(width=0.75, depth=0.5)
        morphogen.morph(net, target, operator=wrong)
    assert net.away.keys() == away.keys() and all(net.away[name] is away[name] for name in away)


class Loop:
    """A user's loop on a network that the seed has pretrained."""

    def __init__(self, seed=0, method=None):
        torch.manual_seed(seed)
        self.model = Tower(4, rate=0.0)
        randomise_statistics(self.model)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        method = method or morphogen.GrowOnce(pretrained=True, at=0.5, width=0.5, depth=0.5, multiple_of=1)
        self.run = morphogen.attach(self.model, self.optimizer, method, example=self.x, epochs=4, steps_per_epoch=2)

    def train(self, first=0, until=4):
        for epoch in range(first, until):
            torch.manual_seed(epoch)
            self.run.begin_epoch(epoch)
            for _ in range(2):
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.x), torch.arange(2)).backward()
                self.optimizer.step()
        return self


def test_fine_tuning_goes_on_bit_for_bit():
    """The network that goes on is another one: what is away, and which channels are, comes from the state."""
    whole = Loop().train()
    state = io.BytesIO()
    torch.save(Loop().train(until=1).run.state_dict(), state)
    other = Loop(seed=7)
    assert by_importance(other.run.network) != by_importance(Loop().run.network)
    other.run.load_state_dict(torch.load(io.BytesIO(state.getvalue()), weights_only=True))
    other.train(1)
    assert other.run.history == whole.run.history
    assert all(torch.equal(t, other.model.state_dict()[n]) for n, t in whole.model.state_dict().items())
    # A script's own checkpoint says the same.
    begun, again = Loop().train(until=1), Loop(seed=7)
    model, optimizer = copy.deepcopy((begun.model.state_dict(), begun.optimizer.state_dict()))
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    again.train(1)
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in whole.model.state_dict().items())


def test_a_state_that_lacks_what_is_away_is_refused_and_changes_nothing():
    good = Loop().train(until=1).run.state_dict()
    loop = Loop(seed=7)
    before, name = state_of(loop.model), "conv1.weight"
    damages = [
        lambda state: state.pop("away"),
        lambda state: state["away"].pop(name),
        lambda state: state["away"][name].update(tensor=torch.zeros(3)),
        lambda state: state["away"][name].update(tensor=state["away"][name]["tensor"].double()),
        lambda state: state["away"].update({"no.such": state["away"][name]}),
        lambda state: state["away"][name].update(resolution=[3, -1]),
        lambda state: next(iter(state["parts"].values())).pop("order"),
        lambda state: next(iter(state["parts"].values()))["order"].update({"conv1": [0] * 12}),
    ]
    for damage in damages:
        state = copy.deepcopy(good)
        damage(state)
        with pytest.raises(CheckpointError):
            loop.run.load_state_dict(state)
        assert loop.run.network.away == {} and loop.run.network.current == loop.run.network.dense
        assert all(torch.equal(t, before[n]) for n, t in loop.model.state_dict().items())
    loop.run.load_state_dict(good)


def test_a_search_that_is_thrown_away_gives_back_what_was_away_before(monkeypatch):
    """Blocks that left before the search return as they were then, whatever the search has trained."""
    from planted import Planted, plant_times, steps_of

    plant_times(monkeypatch)
    model = Tower(4, rate=0.0)
    first = state_of(model)
    method = morphogen.AutoProg(
        stages=4, search_epochs=1, depth_operator="restore", recycle=False, scoring="literal", dimensions=("depth",)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = Planted(model, ((12, 2, 8), (12, 3, 8), (12, 3, 8))).probe
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=8, steps_per_epoch=9, probe=probe)
    epoch, seen = 0, []
    while epoch < 8:
        run.begin_epoch(epoch)
        seen.append(len(run.network.current.blocks["blocks"]))
        for name, (tensor, _) in run.network.away.items():  # never trained outside a search: what it was at first
            assert torch.equal(tensor, first[name]), name
        for _ in range(steps_of(run)):
            take_steps(model, optimizer, image(), steps=1, run=run)
        epoch = run.next_epoch(epoch)
    assert seen[:6] == [4, 2, 2, 4, 3, 3] and seen[-1] == 4


def test_importance_by_hand():
    """Two layers: 2 hidden channels. Rows of the first (3, 4) and (0, 5) have norm 5 each; what reads them, 1 and 3."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
        model[0].bias.copy_(torch.tensor([100.0, 0.0]))  # what is added does not count
        model[2].weight.copy_(torch.tensor([[1.0, -3.0]]))
    net = morphogen.trace(model, torch.randn(2, 2))
    (group,) = net.groups
    # Means over the tensors: (1 + 1/2) / 2 and (1 + 3/2) / 2.
    assert importance(net)[group.name].tolist() == [0.75, 1.25]
    assert by_importance(net) == {group.name: (1, 0)}
    morphogen.morph(net, net.subnetwork(width=0.5))
    with pytest.raises(ValueError, match="full width"):
        importance(net)


def test_the_importance_of_a_head_is_that_of_all_its_positions():
    model = deit(depth=2)
    net = morphogen.trace(model, torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.fill_(1e-3)
        size = model.blocks[0].attn.head_dim
        model.blocks[0].attn.proj.weight[:, size : 2 * size] = 1.0
    assert by_importance(net)["blocks.0.attn.num_heads"] == (1, 0)


def test_a_batch_norm_decides_between_equal_filters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        for weight in (model[0].weight, model[4].weight):
            weight.fill_(1.0)
        model[1].weight.copy_(torch.tensor([0.1, -2.0, 1.0, 0.5]))
    net = morphogen.trace(model, image())
    assert by_importance(net) == {net.groups[0].name: (1, 2, 3, 0)}


def test_stages_have_the_most_important_channels_of_the_weights_that_training_begins_with():
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.NetworkExpansion(width=0.25, stages=3, operator="restore", choose="importance")
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=3)
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # weights that come after `attach`, as a script may load them
    order = by_importance(run.network)
    for epoch in range(3):
        run.begin_epoch(epoch)
        by_position = method.schedule(run.network, 3)[epoch].subnetwork
        for name, units in run.network.current.channels.items():
            assert units == tuple(sorted(order[name][: len(by_position.channels[name])])), name
    assert run.network.current == run.network.dense
    assert [s.subnetwork for s in run.stages] == [s for _, s in run.history]


def test_a_first_network_of_the_most_important_channels_is_nearer_to_the_whole():
    """Half of the channels are nearly silent; by position half of them would stay, by importance none."""
    model = Residual().eval()
    net = morphogen.trace(model, image())
    quiet = {group.name: range(0, group.size, 2) for group in net.groups}
    with torch.no_grad():
        for name, layout in net.structure.tensors.items():
            tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
            for dim, axis in enumerate(layout.axes):
                if axis is not None and layout.role.kind in ("weight", "scale", "shift", "bias"):
                    tensor.index_fill_(dim, torch.arange(0, len(axis), 2), 1e-6)
    x = image()
    expected = model(x)
    small = replace(net.dense, channels={name: units[: len(units) // 2] for name, units in by_importance(net).items()})
    small = replace(small, channels={name: tuple(sorted(units)) for name, units in small.channels.items()})
    assert all(not {*small.channels[name]} & {*quiet[name]} for name in quiet)
    morphogen.morph(net, small, operator="restore")
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_settings_that_do_not_exist():
    with pytest.raises(ConfigError, match=r"no such choice of channels.*position or importance"):
        morphogen.GrowOnce(choose="random")
    assert morphogen.GrowOnce(pretrained=True, width=0.5) != morphogen.GrowOnce(width=0.5)


def test_a_state_that_does_not_say_which_channels_it_has_is_refused():
    """As safetensors keeps it: without metadata. The optimizer's state says it."""
    begun = Loop().train(until=1)
    optimizer = copy.deepcopy(begun.optimizer.state_dict())
    plain = {name: tensor.clone() for name, tensor in begun.model.state_dict().items()}
    other = Loop(seed=7)
    with pytest.raises(CheckpointError, match="does not say which channels it has"):
        other.model.load_state_dict(plain)
    other.optimizer.load_state_dict(optimizer)
    other.model.load_state_dict(plain)
    assert other.run.network.current == begun.run.network.current
    assert same_tensors(other.train(1).model, begun.train(1).model)


def same_tensors(one, two):
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_morphs_that_restore_are_timed(monkeypatch):
    """Where steps are taken apart, the network is small before the morph is timed that brings something back."""
    from morphogen.plan.steps import Bench, Training
    from morphogen.run.assembly import Assembly

    model = Tower(4)
    net = morphogen.trace(model, image())
    training = Training(
        image(), torch.zeros(2, dtype=torch.long), optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1)
    )
    bench = Bench(net, copy.deepcopy(model), training)
    assembly = Assembly(morphogen.GrowOnce(pretrained=True, width=0.5, depth=0.5, multiple_of=1))
    for _ in range(2):  # the second time of a network that is small by now
        assembly.plan(net, 4)
        small, dense = (stage.subnetwork for stage in assembly.stages)
        assert bench.morph_seconds(dense, small, assembly) > 0 and bench.morph_seconds(small, dense, assembly) > 0
        bench._go(small)
    assert net.away is None
