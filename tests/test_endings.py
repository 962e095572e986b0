"""A run ends once its last epoch is trained, whatever the loop looks like; or it says that it has not."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import morphogen
from morphogen.extend import Average, ConfigError, Search
from morphogen.machine import ranks

from nets import Residual, image
from own_loops import FOLLOWED, WIDE, attached, seeded, sgd, step
from planted import plant_sparse

PRUNES = morphogen.PruneTrain(interval=2)


def in_the_last_epoch(steps: int = 0, method=PRUNES, epochs: int = 2, **settings):
    """A run whose last epoch has so many steps, and whose earlier ones had three."""
    model, optimizer, run = attached(method, make=Residual, epochs=epochs, **settings)
    optimizer.param_groups[0]["lr"] = 0.0  # what is planted stays
    for epoch in range(epochs):
        run.begin_epoch(epoch)
        for _ in range(3 if epoch < epochs - 1 else steps):
            step(model, optimizer, loss_of=run.penalised)
    plant_sparse(run.network, run.network.subnetwork(width=0.5))
    return model, optimizer, run


def evaluate(model: nn.Module) -> None:
    with torch.inference_mode():
        model.eval()(image(2))
    model.train()


def trains(parameters) -> bool:
    return all(not p.is_inference() and p.requires_grad for p in parameters)


@pytest.mark.parametrize("look", [evaluate, nn.Module.state_dict, lambda model: model.eval().state_dict()])
def test_the_first_look_after_the_last_epoch_ends_it(look):
    model, optimizer, run = in_the_last_epoch(3)
    assert not run.ended
    state = look(model)
    assert run.ended and run.network.current != run.network.dense and not model._forward_pre_hooks
    assert trains(model.parameters()) and len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    if state is not None:
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert "morphogen" not in state._metadata[""]


def test_an_average_that_is_evaluated_ends_it():
    model, _, run = in_the_last_epoch(3)
    average = torch.optim.swa_utils.AveragedModel(model)
    run.follow(average)
    evaluate(average)
    assert run.ended
    average(image(2))


def test_one_epoch_ends_with_its_evaluation():
    model, _, run = in_the_last_epoch(3, epochs=1, method=morphogen.PruneTrain(interval=1))
    model.state_dict()  # of a model in training: who knows how long the epoch is
    assert not run.ended
    evaluate(model)
    assert run.ended


def test_a_last_step_that_a_scaler_skips():
    model, optimizer, run = attached(PRUNES, make=Residual, epochs=2, steps_per_epoch=10)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for epoch in range(2):
        run.begin_epoch(epoch)
        for number in range(10):
            scaler.scale(run.penalised(model(image(4)).square().mean())).backward()
            if (epoch, number) == (1, 9):
                model.fc.weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert not run.ended
    evaluate(model)
    assert run.ended


def test_a_longer_last_epoch_is_whole():
    model, optimizer, run = attached(PRUNES, make=Residual, epochs=2)
    for epoch, steps in enumerate((3, 6)):
        run.begin_epoch(epoch)
        for number in range(steps):
            step(model, optimizer, loss_of=run.penalised)
            model.state_dict()  # as an average that follows reads it
            if number == 1:
                evaluate(model)  # within the epoch
    assert not run.ended and run.progress()["steps"] == 6
    evaluate(model)
    assert run.ended


def test_an_end_that_came_too_early_is_said_once():
    model, optimizer, run = in_the_last_epoch(3)
    evaluate(model)
    with pytest.warns(
        UserWarning, match=r"ended by itself after 3 steps of its last epoch.*no penalty.*steps_per_epoch"
    ):
        step(model, optimizer, loss_of=run.penalised)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer, loss_of=run.penalised)


def test_another_run_ends_the_one_before():
    model, _, run = in_the_last_epoch(3)
    other = morphogen.attach(model, sgd(model), WIDE, example=image(4), epochs=2)
    assert run.ended and other.network.dense != run.network.dense
    other.detach()


@pytest.mark.parametrize("hooks", [True, False])
def test_a_run_that_is_forgotten_is_told_of(hooks):
    model, optimizer, run = attached(morphogen.PruneTrain(interval=1), make=Residual, epochs=1, hooks=hooks)
    run.begin_epoch(0)
    step(model, optimizer, loss_of=run.penalised)
    run.end_step()
    del model, optimizer, run
    with pytest.warns(UserWarning, match=r"the run has not ended.*call run\.end\(\) before it is saved"):
        gc.collect()


def test_a_run_with_nothing_left_to_do_says_nothing():
    model, optimizer, run = attached(WIDE, make=Residual, epochs=2)
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del model, optimizer, run
        gc.collect()


def test_ranks_end_together(monkeypatch):
    model, optimizer, run = in_the_last_epoch(2)
    monkeypatch.setattr(morphogen.run.ending, "ranks", lambda: 2)
    monkeypatch.setattr(morphogen.run.watch, "ranks", lambda: 2)
    evaluate(model)
    model.state_dict()
    assert not run.ended
    step(model, optimizer, loss_of=run.penalised)
    assert run.ended and ranks.ranks() == 1


def test_a_compiled_model_stays_one_graph():
    model, optimizer, run = attached(PRUNES, make=Residual, epochs=2, steps_per_epoch=1)
    called = torch.compile(model, backend="eager", fullgraph=True)
    try:
        for epoch in range(2):
            run.begin_epoch(epoch)
            step(called, optimizer, loss_of=run.penalised)
            evaluate(called)
    finally:
        torch.compiler.reset()
    assert run.ended


def test_hooks_of_others_stay():
    model, optimizer, run = attached(WIDE, make=Residual, epochs=2, steps_per_epoch=1)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("step"))
    model.register_state_dict_pre_hook(lambda *_: seen.append("state"))
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(model, optimizer)
    model.state_dict()
    assert run.ended and seen == ["step", "step", "state"]
    other, its, run = attached(WIDE, make=Residual, epochs=2)
    other.register_state_dict_pre_hook(lambda *_: seen.append("other"))
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(other, its)
    other.state_dict()
    other.state_dict()
    assert run.ended and seen[3:] == ["other", "other"]


# --- going back within an epoch ----------------------------------------------------------------------------


PROBE = morphogen.Probe(lambda images, labels: images.square().mean() + 1, [(image(4), None)])


def halves(model):
    parameters = list(model.parameters())
    return [torch.optim.SGD(parameters[:3], 0.05, momentum=0.9), torch.optim.AdamW(parameters[3:])]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (morphogen.AutoProg(stages=2, search_epochs=1, decay=0.5), {"probe": PROBE, "steps_per_epoch": 9}),
        (morphogen.PruneTrain(interval=1, proximal=True), {}),
        (FOLLOWED, {"optimizer": halves}),
        (WIDE + morphogen.DynamicBatch(step=4, limit=8), {"batch_size": 4, "steps_per_epoch": 20}),
    ],
    ids=["search", "proximal", "momentum network", "batch"],
)
def test_going_back_within_an_epoch(method, settings, own):
    def losses(goes_back):
        model, optimizers, run = attached(method, epochs=4, **settings)
        several = optimizers if isinstance(optimizers, list) else [optimizers]

        def steps(first, last):
            for number in range(first, last):
                torch.manual_seed(number)
                run.penalised(model(image(run.batch_size or 4)).square().mean()).backward()
                for optimizer in several:
                    optimizer.step()
                    optimizer.zero_grad()

        run.begin_epoch(0)
        steps(0, 4)
        state = (run.state_dict() if own else [part.state_dict() for part in (model, *several)]) if goes_back else None
        state = copy.deepcopy(state)
        if goes_back:
            steps(4, 6)
            run.penalised(model(image(run.batch_size or 4)).square().mean()).backward()
            several[0].step()  # and then the loss is no number
            for part in several:
                part.zero_grad()
            if own:
                run.load_state_dict(state)
            else:
                for part, its in zip((model, *several), state, strict=True):
                    part.load_state_dict(its)
            assert run.progress()["steps"] == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            steps(4, 9)
        average, search = run.part(Average), run.part(Search)
        tensors = [*model.state_dict().values()]
        if average is not None and average.network is not None:
            tensors += average.network.state_dict().values()
        return tensors, run.progress(), None if search is None else search.searching.steps

    (one, *where), (other, *there) = losses(False), losses(True)
    assert where == there and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- activation checkpointing in a search ------------------------------------------------------------------


def searched():
    model, optimizer, run = attached(morphogen.AutoProg(stages=2, search_epochs=1), steps_per_epoch=9, probe=PROBE)
    run.begin_epoch(0)
    return model, optimizer, run


def test_a_model_that_is_called_anew_for_its_gradients():
    model, optimizer, run = searched()
    with pytest.raises(
        ConfigError, match=r"Tower: this step's forward pass ran without gradients.*use_reentrant=False"
    ):
        checkpoint(model, image(4).requires_grad_(), use_reentrant=True).square().mean().backward()
    checkpoint(model, image(4), use_reentrant=False).square().mean().backward()
    optimizer.step()
    assert run.progress()["steps"] == 1


class Halves(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_with_tensors_of_another_size(reentrant):
    model = seeded(Halves)
    net = morphogen.trace(model, image(4))
    supernet = morphogen.extend.ElasticSupernet(net, [net.subnetwork(width=0.5), net.dense])
    first, rest = nn.Sequential(*list(model)[:3]), nn.Sequential(*list(model)[3:])
    for number in (1, 0):
        supernet.run_as(number)
        with supernet.swapped():
            images = image(4).requires_grad_()
            loss = rest(checkpoint(first, images, use_reentrant=reentrant)).square().mean()
        if number:
            continue  # the whole has nothing to swap
        with pytest.raises(
            ConfigError, match=r"Conv2d: a module of an elastic supernet runs outside.*no activation check"
        ):
            loss.backward()
    supernet.close()
    assert not model[0]._forward_pre_hooks


# --- the learning rate at a growth -------------------------------------------------------------------------


def grown_at(rates, tensor=False):
    model, optimizer, run = attached(WIDE, make=Residual, epochs=len(rates))
    for epoch, rate in enumerate(rates):
        run.begin_epoch(epoch)
        for each in rate if isinstance(rate, tuple) else (rate,):
            optimizer.param_groups[0]["lr"] = torch.tensor(each) if tensor else each
            step(model, optimizer)
    run.end()


@pytest.mark.parametrize("tensor", [True, False])
def test_a_growth_at_a_low_learning_rate_is_said(tensor):
    with pytest.warns(
        UserWarning, match=r"grew in epoch 2, at a learning rate of 0\.004 .*has been 0\.05: .*grow earlier"
    ) as told:
        grown_at([0.01, 0.05, 0.004, 0.001], tensor)
    assert len(told) == 1


@pytest.mark.parametrize(
    "rates", [[0.05, 0.05, 0.005, 0.0], [0.05, 0.05, (0.0, 0.05), 0.0], [0.001, 0.001, 0.001, 0.05]]
)
def test_other_growths_are_not(rates):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grown_at(rates)


@pytest.mark.parametrize("told", [None, 5])
def test_a_run_of_one_epoch_that_goes_on_behind_its_end_says_so(told):
    method = morphogen.NetworkExpansion(depth=1.0, stages=1, depth_operator="rezero")
    model, optimizer, run = attached(method, epochs=1, steps_per_epoch=told)
    run.begin_epoch(0)
    for _ in range(3):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model)
    if told:
        assert not run.ended
        return
    with pytest.warns(UserWarning, match="ended by itself when its model was first evaluated, after 3 steps"):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)
