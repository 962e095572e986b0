"""PruneTrain and its kin in a user's own loop: when they prune, what follows, and beside other methods."""

import copy
import warnings

import pytest
import torch

import morphogen
from morphogen import SSL, Combined, Dense, GrowThenPrune, NetworkExpansion, OneTime, PruneTrain
from morphogen.methods import build_method
from morphogen.parts import Average, Prune
from morphogen.pruning.policy import Pruning
from morphogen.run.assembly import Assembly

from checks import assert_optimizer_holds_model, assert_survivors_equal, perturb, snapshot, take_steps
from nets import Block, Residual, Tower, image
from planted import plant_sparse


def attached(model, method, epochs, **settings):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    return morphogen.attach(model, optimizer, method, example=image(), epochs=epochs, **settings), optimizer


def make_sparse(run, **alive):
    """Plant zeros in the dense channels of these groups that are not named."""
    net = run.network
    everything = {name: [u for u in units if u in net.current.channels[name]] for name, units in alive.items()}
    plant_sparse(net, net.subnetwork(alive=everything))


@pytest.mark.parametrize("hooks", [True, False])
def test_a_loop_of_ones_own(hooks):
    model = Residual()
    ema = copy.deepcopy(model)
    perturb(ema)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    take_steps(model, optimizer, image(), steps=1)
    method = PruneTrain(ratio=0.2, interval=2)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=6, ema=ema, hooks=hooks)
    net, sizes = run.network, []
    for epoch in range(6):
        keep = range(1 + epoch, 12)
        make_sparse(run, conv1=keep)
        before, average, old = snapshot(model, optimizer), snapshot(ema), net.current
        receipt = run.begin_epoch(epoch)
        assert (receipt is not None) == (epoch in (2, 4))
        assert_survivors_equal(net, before, old, net.current, snapshot(model, optimizer))
        assert_survivors_equal(net, average, old, net.current, snapshot(ema))
        assert_optimizer_holds_model(model, optimizer)
        sizes.append(model.conv1.out_channels)
        if epoch == 5:  # the last step leaves the weights as they are
            make_sparse(run, conv1=[8, 10])
            optimizer.param_groups[0]["lr"] = 0.0
        optimizer.zero_grad()
        run.penalised(torch.nn.functional.cross_entropy(model(image(4)), torch.arange(4))).backward()
        optimizer.step()
        if not hooks:
            run.end_step()
    assert sizes == [12, 12, 9, 9, 7, 7]
    model.state_dict()  # as a script saves it: it was not told of the steps, so that this shows its end
    assert run.ended == hooks and model.conv1.out_channels == (2 if hooks else 7)
    receipt = run.end()
    assert receipt is not None and receipt.after == net.current
    assert [(epoch, s.channels["conv1"]) for epoch, s in run.history] == [
        (0, tuple(range(12))),
        (2, tuple(range(3, 12))),
        (4, tuple(range(5, 12))),
        (6, (8, 10)),
    ]
    assert all(s.channels["stem"] == tuple(range(8)) for _, s in run.history)
    assert_optimizer_holds_model(model, optimizer)
    again = morphogen.trace(Residual(), image())
    for _, subnetwork in run.history:
        morphogen.morph(again, subnetwork)
    again.model.load_state_dict(model.state_dict())


def test_the_end_takes_out_what_an_early_stop_leaves_and_says_when_there_is_nothing():
    for method, epochs, left in [(PruneTrain(interval=3), 9, 4), (OneTime(), 9, 4), (Dense(), 9, 12)]:
        run, _ = attached(Residual(), method, epochs)
        run.begin_epoch(1)
        make_sparse(run, conv1=range(4))
        receipt = run.end()
        assert run.network.model.conv1.out_channels == left
        assert (receipt is None) == (left == 12)
        make_sparse(run, conv1=range(3))
        assert run.end() is receipt and run.network.model.conv1.out_channels == left


def test_epochs_that_are_skipped_skip_no_reconfiguration():
    run, _ = attached(Residual(), PruneTrain(interval=2), 9, start_epoch=0)
    make_sparse(run, conv1=range(4))
    with pytest.warns(UserWarning, match="epoch 5 begins after epoch 0"):
        run.begin_epoch(5)
    assert run.network.model.conv1.out_channels == 4 and len(run.history) == 2


@pytest.mark.parametrize("method", [Dense(), NetworkExpansion(width=0.5, stages=2)])
def test_a_method_that_does_not_prune_leaves_the_loss_alone(method):
    run, _ = attached(Tower(), method, 4)
    loss = torch.tensor(1.0)
    for epoch in range(4):
        run.begin_epoch(epoch)
        assert run.penalised(loss) is loss
    assert run.part(Prune) is None


SCHEDULES = [
    (PruneTrain(interval=3), 10, (3, 6, 9, 10), range(10)),
    (PruneTrain(), 182, (*range(10, 181, 10), 182), range(182)),
    (PruneTrain(), 90, (*range(5, 90, 5), 90), range(90)),
    (PruneTrain(), 4, (1, 2, 3, 4), range(4)),
    (PruneTrain(interval=10), 10, (10,), range(10)),
    (PruneTrain(start=0.5, interval=2), 10, (7, 9, 10), range(5, 10)),
    (OneTime(), 10, (5,), range(10)),
    (OneTime(at=0.75), 8, (6,), range(8)),
    (SSL(), 30, (24,), range(12, 24)),
    (SSL(trained=0.5, sparse=0.75), 8, (6,), range(4, 6)),
    (GrowThenPrune(interval=2), 10, (6, 8, 10), range(4, 10)),
    (GrowThenPrune(start=0.5, interval=4), 12, (10, 12), range(6, 12)),
]


@pytest.mark.parametrize("method, epochs, at, penalised", SCHEDULES, ids=[f"{m} in {e}" for m, e, _, _ in SCHEDULES])
def test_schedules(method, epochs, at, penalised):
    policy = method.pruning(epochs)
    assert policy.at == at
    assert [epoch for epoch in range(epochs) if policy.penalises(epoch)] == list(penalised)
    settings = (policy.ratio, policy.threshold, policy.multiple_of, policy.proximal)
    assert settings == (0.25, 1e-4, 1, False)


def restarts(method):
    assembly = Assembly(method)
    assembly.plan(morphogen.trace(Residual(), image()), 30)
    return assembly.restarts


def test_settings_reach_the_policy():
    method = build_method("PruneTrain(ratio=0.1, interval=2, threshold=0.01, multiple_of=8, proximal=True)")
    assert method.pruning(4) == Pruning(0.1, (2, 4), 0, None, 0.01, 8, True)
    assert restarts(SSL()) == (12, 24) and restarts(PruneTrain()) == ()
    assert restarts(Combined((NetworkExpansion(), SSL()))) == (12, 24)


def test_one_time_prunes_once_and_the_penalty_stays():
    run, _ = attached(Residual(), OneTime(), 6)
    seen = []
    for epoch in range(6):
        make_sparse(run, conv1=range(11 - epoch))
        run.begin_epoch(epoch)
        seen.append(run.network.model.conv1.out_channels)
        assert run.penalised(torch.tensor(1.0)) > 1
    assert seen == [12, 12, 12, 8, 8, 8] and run.end() is None


def test_ssl_penalises_between_training_and_fine_tuning():
    run, _ = attached(Residual(), SSL(trained=0.5, sparse=0.75), 8)
    loss, seen, penalties = torch.tensor(1.0), [], []
    for epoch in range(8):
        make_sparse(run, conv1=range(11 - epoch))
        run.begin_epoch(epoch)
        seen.append(run.network.model.conv1.out_channels)
        penalties.append(run.penalised(loss) is not loss)
    assert seen == [12] * 6 + [5] * 2
    assert penalties == [False] * 4 + [True] * 2 + [False] * 2
    assert run.end() is None


def test_grow_then_prune_sets_its_coefficient_on_the_grown_network():
    run, _ = attached(Residual(), GrowThenPrune(start=0.5, width=0.5, stages=2, interval=2), 8, start_epoch=0)
    loss, seen = torch.tensor(1.0), []
    for epoch in range(8):
        make_sparse(run, conv1=range(11 - epoch))  # before the penalty begins nothing goes
        run.begin_epoch(epoch)
        seen.append(run.network.model.conv1.out_channels)
        whole = run.penalised(loss)
        if epoch < 4:
            assert whole is loss and run.part(Prune).pruner.coefficient is None
        elif epoch == 4:
            assert run.network.current == run.network.dense
            assert whole.item() == pytest.approx(1 / (1 - 0.25))
    assert seen == [6, 6, 9, 9, 12, 12, 5, 5]


def growing_and_pruning(**settings):
    return Combined((NetworkExpansion(**settings), PruneTrain(interval=1)))


def test_with_growth_what_is_pruned_never_comes_back():
    run, optimizer = attached(Tower(), growing_and_pruning(width=0.5, stages=3), 6, start_epoch=0)
    seen = []
    for epoch in range(6):
        if epoch == 1:
            make_sparse(run, conv1=[0, 1, 3, 4, 5])
        if epoch == 3:
            make_sparse(run, conv1=[0, 1, 3, 4, 5, 6, 8])
        run.begin_epoch(epoch)
        seen.append(run.network.current.channels["conv1"])
        take_steps(run.network.model, optimizer, image(), steps=1, run=run)
        assert_optimizer_holds_model(run.network.model, optimizer)
    start, grown = tuple(range(6)), (0, 1, 3, 4, 5, 6, 7, 8)
    whole = (0, 1, 3, 4, 5, 6, 8, 9, 10, 11)
    assert seen == [start, (0, 1, 3, 4, 5), grown, (0, 1, 3, 4, 5, 6, 8), whole, whole]


def test_with_growth_of_depth_a_block_that_is_pruned_never_comes_back():
    run, optimizer = attached(Tower(), growing_and_pruning(depth=0.5, stages=2), 4, steps_per_epoch=2, start_epoch=0)
    assert run.network.current.blocks["blocks"] == (0, 2)
    model = run.network.model
    torch.nn.init.zeros_(model.blocks[0].conv.weight)
    run.begin_epoch(1)
    assert run.network.current.blocks["blocks"] == (2,)
    run.begin_epoch(2)
    assert run.network.current.blocks["blocks"] == (1, 2, 3) and isinstance(model.blocks[1], Block)
    take_steps(model, optimizer, image(), run=run)
    assert_optimizer_holds_model(model, optimizer)


def test_with_resolution_channels_stay_out_while_images_grow():
    method = build_method("ProgressiveResizing(stages=2) + PruneTrain(interval=1)")
    run, optimizer = attached(Tower(), method, 4)
    seen = []
    for epoch in range(4):
        if epoch == 1:
            make_sparse(run, conv1=range(5))
        run.begin_epoch(epoch)
        seen.append((run.network.model.conv1.out_channels, run.network.current.resolution))
        take_steps(run.network.model, optimizer, image(), steps=1, run=run)
    assert seen == [(12, (4, 4)), (5, (4, 4)), (5, (8, 8)), (5, (8, 8))]


def test_a_reconfiguration_takes_nothing_from_the_momentum_network():
    """Momentum Growth loads all weights from it where the network grows, and only there."""
    method = build_method("Prog(stages=2) + PruneTrain(interval=1)")
    run, optimizer = attached(Tower(), method, 4, steps_per_epoch=2, start_epoch=0)
    model, momentum = run.network.model, run.part(Average).network
    take_steps(model, optimizer, image(), run=run)
    perturb(momentum.module)
    make_sparse(run, conv1=range(5))
    before, average, old = snapshot(model, optimizer), snapshot(momentum.module), run.network.current
    assert run.begin_epoch(1) is not None and model.conv1.out_channels == 5
    now = run.network.current
    assert_survivors_equal(run.network, before, old, now, snapshot(model, optimizer))
    assert_survivors_equal(run.network, average, old, now, snapshot(momentum.module))
    take_steps(model, optimizer, image(), run=run)
    run.begin_epoch(2)
    assert run.network.current.channels == now.channels


def test_several_optimizers_each_shrink_their_own():
    model = Residual()
    parts = [list(model.parameters())[:3], list(model.parameters())[3:]]
    optimizers = [torch.optim.SGD(parts[0], 0.1), torch.optim.AdamW(parts[1], 0.1)]
    method = PruneTrain(interval=1, proximal=True)
    run = morphogen.attach(model, optimizers, method, example=image(), epochs=2, start_epoch=0, hooks=False)
    run.penalised(torch.tensor(1.0))
    before = {name: parameter.detach().norm() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    run.end_step()
    assert all(model.get_parameter(name).norm() < norm for name, norm in before.items())
    make_sparse(run, conv1=range(5), stem=range(3))
    run.begin_epoch(1)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_blocks_that_have_just_come_in_are_not_judged_by_what_they_were_filled_with():
    """`identity` fills what writes into the stream with zeros: an empty layer, by the threshold."""
    method = build_method("NetworkExpansion(depth=0.5, stages=2, depth_operator='identity') + PruneTrain(interval=2)")
    run, optimizer = attached(Tower(), method, 6)
    run.begin_epoch(3)
    assert run.network.current == run.network.dense
    take_steps(run.network.model, optimizer, image(), run=run)
    run.begin_epoch(4)
    assert run.network.current == run.network.dense


def test_ssl_is_as_strong_as_prunetrain_at_the_same_ratio():
    torch.manual_seed(0)
    model = Residual()
    (early, _), (late, _) = (attached(copy.deepcopy(model), method, 6) for method in (PruneTrain(), SSL()))
    for run in (early, late):
        run.penalised(torch.tensor(2.3))
    assert late.part(Prune).pruner.coefficient == early.part(Prune).pruner.coefficient
    late.begin_epoch(3)
    loss = torch.tensor(0.05)  # by now the network is trained
    assert late.penalised(loss) > loss and late.part(Prune).pruner.coefficient == early.part(Prune).pruner.coefficient


def test_a_loss_that_was_never_penalised_is_told():
    run, _ = attached(Residual(), PruneTrain(interval=1), 3)
    run.begin_epoch(0)
    with pytest.warns(UserWarning, match=r"no loss has been penalised yet; call run\.penalised"):
        run.begin_epoch(1)
    run.penalised(torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.begin_epoch(2)


def test_the_penalty_follows_every_morph():
    model = Residual()
    net = morphogen.trace(model, image())
    lasso = morphogen.GroupLasso(net)
    whole = float(lasso())
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert float(lasso()) == float(morphogen.GroupLasso(net)()) < whole


def test_adaptive_optimizers_are_told_to_step_proximally():
    model = Residual()
    settings = {"example": image(), "epochs": 2}
    with pytest.warns(UserWarning, match=r"hover around zero.*proximal=True"):
        run = morphogen.attach(model, torch.optim.AdamW(model.parameters()), PruneTrain(), **settings)
    run.detach()
    for kind in (torch.optim.Adagrad, torch.optim.Adadelta):
        with pytest.raises(morphogen.ConfigError, match=f"{kind.__name__}: a proximal step has to know"):
            morphogen.attach(model, kind(model.parameters()), PruneTrain(proximal=True), **settings)
