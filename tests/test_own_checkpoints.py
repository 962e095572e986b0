"""A script's own checkpoints: model and optimizer, saved at any stage and loaded at any other."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.extend import CheckpointError, Search
from morphogen.methods import Dense

from nets import Plain, Residual, image
from own_loops import DEEP, FOLLOWED, WIDE, attached, saved, seeded, sgd, step
from planted import plant_sparse


def test_a_loaded_state_allows_any_epoch():
    model, optimizer, run = attached(WIDE)
    run.begin_epoch(0)
    state, weights = copy.deepcopy(run.state_dict()), copy.deepcopy(model.state_dict())
    for load in (lambda: run.load_state_dict(state), lambda: model.load_state_dict(weights)):
        run.begin_epoch(1)
        step(model, optimizer)
        load()
        run.begin_epoch(0)


def test_the_best_checkpoint_of_an_earlier_stage():
    model, optimizer, run = attached(WIDE, make=Residual, epochs=6)
    run.begin_epoch(0)
    step(model, optimizer)
    best, copied = copy.deepcopy(model.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    for epoch in range(1, 5):
        run.begin_epoch(epoch)
        step(model, optimizer)
    for state in (best, copied):  # with notes and without
        model.load_state_dict(state)
        assert run.network.current == run.history[0][1]
        assert all(torch.equal(best[name], tensor) for name, tensor in model.state_dict().items())
        step(model, optimizer)
        run.begin_epoch(4)
        assert run.network.current == run.network.dense
        step(model, optimizer)


def cleaned(state):
    """timm's way: another dictionary of the same tensors."""
    return {name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("through", [lambda state: state, cleaned], ids=["as it is", "cleaned"])
@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(
    "method",
    [WIDE, FOLLOWED, WIDE + morphogen.ProgressiveResizing(stages=4), morphogen.PruneEarly(at=0.5, multiple_of=1)],
    ids=str,
)
def test_a_scripts_own_checkpoints(method, stop, through):
    """Model and optimizer, saved by the script at any stage, loaded in a fresh process: bit for bit the same run."""

    def trained(first, last, checkpoint=None):
        model, optimizer, run = attached(method, steps_per_epoch=2)
        if checkpoint is not None:
            model.load_state_dict(through(checkpoint["model"]))
            optimizer.load_state_dict(checkpoint["optimizer"])
        for epoch in range(first, last):
            torch.manual_seed(epoch)
            run.begin_epoch(epoch)
            for _ in range(2):
                step(model, optimizer)
        return model, optimizer

    whole = trained(0, 4)[0].state_dict()
    model, optimizer = trained(0, stop)
    checkpoint = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed = trained(stop, 4, checkpoint)[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_weights_alone_bring_the_size():
    model, optimizer, run = attached(DEEP, steps_per_epoch=1)
    run.begin_epoch(0)
    step(model, optimizer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fresh, _, other = attached(DEEP, steps_per_epoch=1)
    fresh.load_state_dict(weights)
    assert other.network.current.blocks == run.network.current.blocks
    with pytest.warns(UserWarning, match="momentum network did not come with the state"):
        other.begin_epoch(2)


def test_states_that_are_refused_change_nothing():
    model, optimizer, run = attached(WIDE, make=Residual)
    run.begin_epoch(0)
    step(model, optimizer)
    before, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    other = Plain().state_dict()
    cut = {name: tensor[:3] if tensor.ndim else tensor for name, tensor in before.items()}
    with pytest.raises(CheckpointError, match="of no size that this network has had, or will have"):
        model.load_state_dict(cut)
    with pytest.raises(RuntimeError, match="Missing key"):  # nothing of this network: PyTorch's own message
        model.load_state_dict({f"x.{name}": tensor for name, tensor in other.items()})
    run.begin_epoch(2)
    larger = copy.deepcopy(optimizer.state_dict())
    larger.pop("morphogen")
    model.load_state_dict(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"state of SGD is of another size.*Load the model's state first"):
        optimizer.load_state_dict(larger)
    optimizer.load_state_dict(moments)


def test_a_model_in_training_is_copied_and_pickled():
    model, optimizer, run = attached(morphogen.ProgressiveResizing(stages=2))
    run.begin_epoch(0)
    step(model, optimizer)
    model.eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    unpickled, copied = torch.load(file, weights_only=False), copy.deepcopy(model)
    small = F.interpolate(image(4), (4, 4), mode="bilinear", antialias=True)
    images = image(4)
    assert torch.equal(unpickled(small), model(small)) and torch.equal(copied(images), model(images))
    assert copied._forward_pre_hooks and "morphogen" not in unpickled.state_dict()._metadata[""]


def test_a_copy_of_an_attached_model_is_attached_anew():
    method = morphogen.ProgressiveResizing(stages=2)
    model, optimizer, run = attached(method)
    run.begin_epoch(0)
    step(model, optimizer)
    copied, file = copy.deepcopy(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    run.end(grow=True)
    for other in (copied, torch.load(file, weights_only=False)):
        its, sizes = sgd(other), []
        again = morphogen.attach(other, its, method, example=image(4), epochs=4)
        other.conv1.register_forward_pre_hook(lambda module, args, sizes=sizes: sizes.append(args[0].shape[-1]))
        again.begin_epoch(0)
        step(other, its)
        assert sizes == [4]


def test_a_part_of_a_state_changes_no_size():
    model, _, run = attached(morphogen.NetworkExpansion(depth=0.5, stages=2), epochs=4)
    run.begin_epoch(2)
    model.load_state_dict({"fc.bias": torch.ones(10)}, strict=False)
    model.load_state_dict({}, strict=False)
    assert run.network.current == run.network.dense and torch.equal(model.fc.bias, torch.ones(10))


def test_frozen_channels_come_back_from_a_scripts_own_checkpoint():
    def begun(seed):
        model = seeded(Residual, seed)
        model.stem.weight.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
        return model, optimizer, morphogen.attach(model, optimizer, WIDE, example=image(4), epochs=2)

    model, optimizer, run = begun(0)
    pretrained = model.stem.weight.detach().clone()
    run.begin_epoch(0)
    step(model, optimizer)
    checkpoint = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, its, resumed = begun(1)
    other.load_state_dict(checkpoint["model"])
    its.load_state_dict(checkpoint["optimizer"])
    resumed.begin_epoch(1)
    assert torch.equal(other.stem.weight, pretrained)


def test_groups_of_another_optimizer_leave_all_as_it_was():
    _, optimizer, run = attached(WIDE, make=Residual)
    run.begin_epoch(0)
    state = copy.deepcopy(optimizer.state_dict())

    def two(model):
        parameters = list(model.parameters())
        return torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.1)

    other, its, fresh = attached(WIDE, make=Residual, optimizer=two)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match=r"SGD has other parameter groups.*expected 1 groups, found 2"):
        its.load_state_dict(state)
    assert fresh.network.current == fresh.network.dense
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_parameters_of_others_are_in_the_optimizer():
    method = Dense()  # where sizes change, attach refuses others

    def with_centres(seed):
        centres = nn.Parameter(torch.full((3,), float(seed)))
        model, its, run = attached(
            method, optimizer=lambda model: sgd(nn.ParameterList([centres, *model.parameters()]))
        )
        return model, its, run, centres

    model, optimizer, run, centres = with_centres(0)
    run.begin_epoch(0)
    (model(image(4)).square().mean() + (centres - 1).square().sum()).backward()
    optimizer.step()
    _, its, other, others = with_centres(1)
    its.load_state_dict(saved(optimizer.state_dict()))
    assert torch.equal(its.state[others]["momentum_buffer"], optimizer.state[centres]["momentum_buffer"])
    other.load_state_dict(saved(run.state_dict()))
    assert torch.equal(its.state[others]["momentum_buffer"], optimizer.state[centres]["momentum_buffer"])


def test_assign_is_refused_and_changes_nothing():
    model, optimizer, run = attached(WIDE, make=Residual)
    run.begin_epoch(0)
    step(model, optimizer)
    state, before = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    run.begin_epoch(2)
    with pytest.raises(CheckpointError, match=r"Residual: assign=True puts other parameters.*without assign=True"):
        model.load_state_dict(state, assign=True)
    assert run.network.current == run.network.dense
    model.load_state_dict(state)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


def test_weights_from_before_a_pruning_stay_whole():
    model, optimizer, run = attached(morphogen.PruneTrain(interval=1), make=Residual, epochs=4)
    optimizer.param_groups[0]["lr"] = 0.0  # what is planted stays
    states = []
    for epoch in range(3):
        run.begin_epoch(epoch)
        step(model, optimizer, loss_of=run.penalised)
        states.append((run.network.current, {name: tensor.clone() for name, tensor in model.state_dict().items()}))
        if epoch == 0:
            plant_sparse(run.network, run.network.subnetwork(width=0.5))
    (whole, first), (pruned, last) = states[0], states[2]
    assert whole == run.network.dense != pruned == run.network.current
    for state, size in ((first, whole), (last, pruned), (first, whole)):
        model.load_state_dict(state)
        assert run.network.current == size
        run.begin_epoch(2)
        assert run.network.current == size


def test_a_momentum_network_of_another_size_goes():
    model, optimizer, run = attached(morphogen.Prog(stages=3), steps_per_epoch=1, epochs=6)
    run.begin_epoch(0)
    step(model, optimizer)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run.begin_epoch(2)
    step(model, optimizer)
    model.load_state_dict(best)
    step(model, optimizer)
    run.begin_epoch(0)
    step(model, optimizer)


def test_a_state_dict_does_not_wait_for_the_device(monkeypatch):
    probe = morphogen.Probe(lambda images, labels: images.square().mean() + 1, [(image(4), None)])
    model, optimizer, run = attached(morphogen.AutoProg(stages=2, search_epochs=1), steps_per_epoch=9, probe=probe)
    run.begin_epoch(0)
    searching = run.part(Search).searching
    done = []

    class Event:
        def __init__(self, enable_timing):
            self.number = len(done)

        def record(self):
            done.append(False)

        def query(self):
            return done[self.number]

        def elapsed_time(self, end):
            assert self.query() and end.query()
            return 1000.0 * (end.number - self.number)

    waits = []
    monkeypatch.setattr(searching._clock, "_cuda", True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(
        torch.cuda, "synchronize", lambda *_: (waits.append(1), done.__setitem__(slice(None), [True] * len(done)))
    )
    for _ in range(2):
        step(model, optimizer)
    done[:2] = True, True

    def seconds(state):
        return sorted(s for each in state["searching"]["seconds"] for s in each)

    notes = model.state_dict()._metadata[""]["morphogen"]["parts"]["search"]
    assert seconds(notes) == [1.0] and not waits
    assert seconds(run.part(Search).state_dict()) == [1.0, 1.0] and len(waits) == 1


def test_runs_and_networks_are_not_pickled():
    _, _, run = attached(WIDE)
    for held in (run, run.network, {"run": run}):
        with pytest.raises(CheckpointError, match="is not pickled"):
            torch.save(held, io.BytesIO())


def test_a_copy_of_a_module_that_holds_its_run():
    model, optimizer, run = attached(WIDE)
    model.run, model.net = run, run.network
    average = torch.optim.swa_utils.AveragedModel(model)
    assert average.module.run is run and average.module.net is run.network
    run.begin_epoch(0)
    step(model, optimizer)
    assert average(image()).shape == model(image()).shape
