"""What a run notices of the loop around it, and what the loop need not do: members of the kinds that lost trainings."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import morphogen
from morphogen.extend import Average, ConfigError, MorphError, Search

from nets import Residual, Tower, image
from own_loops import DEEP, WIDE, attached, quiet_run, sgd, step

METHODS = [
    WIDE,
    DEEP,
    morphogen.EfficientTrain(),
    morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="rezero"),
    morphogen.PruneTrain(interval=2),
    morphogen.PruneTrain(interval=2, proximal=True),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_hooks_do_what_all_calls_did(method):
    epochs = 10 if isinstance(method, morphogen.EfficientTrain) else 4
    one, other = (quiet_run(method, epochs=epochs, hooks=hooks).state_dict() for hooks in (True, False))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", [WIDE, DEEP], ids=str)
@pytest.mark.parametrize("hooks", [True, False])
def test_no_epoch_was_begun(method, hooks):
    model, optimizer, run = attached(method, hooks=hooks)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"no epoch has begun; expected run\.begin_epoch\(epoch\)"):
        step(model, optimizer)
        run.end_step()
    if hooks:
        assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())


@pytest.mark.parametrize("epoch", [1.5, math.nan, "1", True, None, -1, torch.tensor(1.0)], ids=repr)
def test_what_is_no_epoch(epoch):
    _, _, run = attached(WIDE)
    with pytest.raises(ConfigError, match=r"epoch out of range; expected a whole number, counted from 0"):
        run.begin_epoch(epoch)
    run.begin_epoch(torch.tensor(0))  # NumPy's and PyTorch's whole numbers are some


def test_epochs_again_back_skipped_and_beyond():
    model, optimizer, run = attached(WIDE, epochs=6)
    run.begin_epoch(0)
    run.begin_epoch(0)  # nothing was trained
    step(model, optimizer)
    with pytest.raises(ConfigError, match=r"epoch 0 begins again; expected run\.begin_epoch\(1\).*took 1 steps"):
        run.begin_epoch(0)
    with pytest.warns(UserWarning, match=r"epoch 3 begins after epoch 0; call run\.begin_epoch\(epoch\) for each"):
        run.begin_epoch(3)
    with pytest.raises(ConfigError, match=r"epochs go back; expected run\.begin_epoch\(4\).*load a state first"):
        run.begin_epoch(1)
    with pytest.warns(UserWarning, match="epoch 6 is beyond the run's 6 epochs"):
        run.begin_epoch(6)


@pytest.mark.parametrize("proximal", [False, True])
def test_the_penalty_was_left_out(proximal):
    model, optimizer, run = attached(morphogen.PruneTrain(interval=1, proximal=proximal))
    run.begin_epoch(0)
    with pytest.raises(ConfigError, match=r"step's loss has no penalty; expected run\.penalised\(loss\)\.backward"):
        step(model, optimizer)
    step(model, optimizer, loss_of=run.penalised)
    if proximal:
        step(model, optimizer)  # lambda is known, and the step is the hook's


@pytest.mark.parametrize("method", [WIDE, DEEP, morphogen.NetworkExpansion(depth=0.5, stages=2)], ids=str)
def test_another_optimizer_trains(method):
    model, _, run = attached(method, steps_per_epoch=1)
    other = torch.optim.AdamW(model.parameters())
    run.begin_epoch(0)
    step(model, other)
    with pytest.raises(
        ConfigError,
        match=r"epoch 0: the model was trained and the run did not see it.*the optimizer that the loop uses",
    ):
        run.begin_epoch(1)


def test_weights_that_were_set_are_said():
    model, _, run = attached(WIDE)
    run.begin_epoch(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    with pytest.warns(UserWarning, match="no optimizer given to attach took a step"):
        run.begin_epoch(1)


def test_another_batch_than_the_run_reckons_with():
    method = WIDE + morphogen.DynamicBatch(step=4, limit=64)
    model, optimizer, run = attached(method, batch_size=4, steps_per_epoch=20, epochs=2)
    run.begin_epoch(0)
    assert run.batch_size > 4
    with pytest.warns(UserWarning, match=r"a step of 4 images, where the run expects .*run\.batch_size"):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)  # once an epoch
        run.begin_epoch(1)
        step(model, optimizer)


def test_accumulated_images_are_one_batch():
    method = WIDE + morphogen.DynamicBatch(step=4, limit=8)
    model, optimizer, run = attached(method, batch_size=4, steps_per_epoch=20, epochs=2)
    run.begin_epoch(0)
    assert run.batch_size == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model(image(4)).square().mean().backward()
        optimizer.step()


def test_steps_per_epoch_that_is_wrong():
    model, optimizer, run = attached(DEEP, steps_per_epoch=10)
    run.begin_epoch(0)
    step(model, optimizer)
    with pytest.warns(UserWarning, match=r"epoch 0 had 1 steps, and the run expects 10.*steps_per_epoch=1"):
        run.begin_epoch(1)


def test_a_second_attachment():
    model, _, run = attached(WIDE)
    for again in (model, nn.Sequential(model), model.blocks):
        with pytest.raises(
            ConfigError, match=r"attached to this model, or to a part of it.*run\.end\(\).*NetworkExpansion"
        ):
            morphogen.attach(again, sgd(again), WIDE, example=image(4), epochs=2)
    run.begin_epoch(0)
    run.end(grow=True)
    morphogen.attach(model, sgd(model), WIDE, example=image(4), epochs=2)


def test_nothing_changes_before_the_run_knows_where_it_starts():
    model, _, run = attached(WIDE, epochs=6)
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.begin_epoch(5)  # of the last stage
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    _, _, other = attached(WIDE, epochs=6, start_epoch=0)
    assert other.network.current != other.network.dense
    _, _, third = attached(WIDE, epochs=6)
    with pytest.warns(UserWarning, match="joined at epoch 1, whose stage is smaller than the model .*is dropped"):
        third.begin_epoch(1)


@pytest.mark.parametrize("method", [DEEP, morphogen.ProgressiveResizing(stages=2)], ids=str)
def test_validation_needs_nothing(method):
    model, optimizer, run = attached(method, steps_per_epoch=1)
    sizes = []
    model.conv1.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[-1]))
    for epoch in range(4):
        run.begin_epoch(epoch)
        step(model, optimizer)
        with torch.inference_mode():
            assert model.eval()(image(3, 8)).shape == model(image(3, 12)).shape
        model.train()
    assert sizes == 2 * [4, 4, 8] + 2 * [8, 8, 12]


def test_validation_draws_no_candidate_and_counts_no_step():
    probe = morphogen.Probe(lambda images, labels: images.square().mean() + 1, [(image(4), None)])
    method = morphogen.AutoProg(stages=2, search_epochs=1)
    model, optimizer, run = attached(method, steps_per_epoch=9, probe=probe)
    run.begin_epoch(0)
    search = run.part(Search)
    assert search is not None and search.searching is not None
    for number in range(1, 4):
        step(model, optimizer)
        with torch.no_grad():
            model(image(4))  # statistics of a batch norm, say
            model.eval()(image(4))
        assert search.searching.steps == number
        model.train()


def test_gradients_accumulate_and_a_scaler_skips():
    model, optimizer, run = attached(DEEP, steps_per_epoch=2)
    average = run.part(Average)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run.begin_epoch(0)
    for poison in (False, True, False):
        for _ in range(2):
            scaler.scale(model(image(4)).square().mean()).backward()
        if poison:
            model.fc.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert average is not None and average.network is not None
    assert run.progress()["steps"] == 2


def test_two_optimizers():
    def halves(model):
        parameters = list(model.parameters())
        return [torch.optim.SGD(parameters[:3], 0.05), torch.optim.AdamW(parameters[3:])]

    model, optimizers, run = attached(DEEP, optimizer=halves, steps_per_epoch=2)
    run.begin_epoch(0)
    for number in range(1, 3):
        model(image(4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        assert run.progress()["steps"] == number
    for optimizer in (optimizers[0], optimizers[1], optimizers[0]):  # in turn
        model(image(4)).square().mean().backward()
        optimizer.step()
    run.begin_epoch(1)
    assert run.part(Average) is not None


def test_drop_path_of_the_loops_own_stays():
    model, optimizer, run = attached(morphogen.ProgressiveResizing(stages=2))
    drops = [module for module in model.modules() if hasattr(module, "drop_prob")]
    for drop in drops:
        drop.drop_prob = 0.3
    for epoch in range(4):
        run.begin_epoch(epoch)
        step(model, optimizer)
    assert drops and {drop.drop_prob for drop in drops} == {0.3}


def test_a_compiled_model():
    model, optimizer, run = attached(DEEP, steps_per_epoch=1)
    called = torch.compile(model, backend="eager")
    try:
        for epoch in range(4):
            run.begin_epoch(epoch)
            step(called, optimizer)
    finally:
        torch.compiler.reset()
    Tower().load_state_dict(model.state_dict())


def test_the_compilers_limit_comes_back():
    net = morphogen.trace(Tower(), image())
    before = torch._dynamo.config.recompile_limit
    supernet = morphogen.extend.ElasticSupernet(net, [net.subnetwork(depth=0.5), net.dense])
    assert torch._dynamo.config.recompile_limit > before
    supernet.close()
    supernet.close()
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.parametrize("told", [True, False])
def test_begin_epoch_once_before_the_loop(told):
    model, optimizer, run = attached(WIDE, steps_per_epoch=3 if told else None)
    run.begin_epoch(0)
    if not told:
        for _ in range(3):
            step(model, optimizer)
        run.begin_epoch(1)
    with pytest.warns(UserWarning, match=r"has more than its 3 steps; call run\.begin_epoch\(epoch\)"):
        for _ in range(6):
            step(model, optimizer)


def test_begin_step_is_left_out_where_the_loop_makes_the_calls():
    model, optimizer, run = attached(morphogen.ProgressiveResizing(stages=2), hooks=False)
    run.begin_epoch(0)
    step(model, optimizer)
    with pytest.raises(ConfigError, match=r"were not seen; expected images = run\.begin_step\(images\)"):
        run.end_step()


def test_a_closure_computes_the_penalty():
    model, optimizer, run = attached(morphogen.PruneTrain(interval=2))
    run.begin_epoch(0)

    def closure(penalises=True):
        optimizer.zero_grad()
        loss = model(image(4)).square().mean()
        loss = run.penalised(loss) if penalises else loss
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ConfigError, match="this step's loss has no penalty"):
        optimizer.step(lambda: closure(False))


def test_optimizers_that_take_turns_each_take_a_step():
    def halves(model):
        parameters = list(model.parameters())
        return [torch.optim.SGD(parameters[:3], 0.05), torch.optim.SGD(parameters[3:], 0.05)]

    model, optimizers, run = attached(morphogen.NetworkExpansion(stages=2), optimizer=halves)
    run.begin_epoch(0)
    for _ in range(4):
        model(image(4)).square().mean().backward()
        optimizers[0].step()
    run.begin_epoch(1)
    assert run.progress()["usual"] == 4


def test_an_epoch_that_was_interrupted_can_be_begun_again(monkeypatch):
    model, optimizer, run = attached(DEEP, steps_per_epoch=1)
    run.begin_epoch(0)
    step(model, optimizer)
    run.begin_epoch(1)
    step(model, optimizer)
    monkeypatch.setattr(Average, "begin_epoch", lambda self, epoch: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.begin_epoch(2)
    monkeypatch.undo()
    run.begin_epoch(2)
    assert run.network.current == run.network.dense


def test_lbfgs_is_refused_at_once():
    model = Residual()
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(MorphError, match=r"LBFGS keeps a state that cannot follow.*'d' of shape"):
        morphogen.attach(model, lbfgs, WIDE, example=image(4), epochs=4)
    run = morphogen.attach(model, lbfgs, morphogen.ProgressiveResizing(stages=2), example=image(4), epochs=4)

    def closure():
        lbfgs.zero_grad()
        loss = model(image(4)).square().mean()
        loss.backward()
        return loss

    run.begin_epoch(0)
    lbfgs.step(closure)
    assert run.progress()["steps"] == 1


class Copies(nn.Module):
    """What `DataParallel` does on two devices: a copy of the model for each, made anew for every forward pass."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return torch.cat([replica(self.module)(part) for part in x.chunk(2)])


def replica(module):
    copy = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        object.__setattr__(copy, name, None if parameter is None else parameter.view_as(parameter))
    return copy


@pytest.mark.parametrize("method", [WIDE, morphogen.GrowOnce(resolution=0.5), morphogen.EfficientTrain()], ids=str)
def test_copies_on_several_devices_grow_with_the_model(method):
    model, optimizer, run = attached(method, epochs=10)
    wrapper, seen, all_seen = Copies(model), set(), set()
    model.conv1.register_forward_hook(lambda conv, args, out: seen.add((tuple(args[0].shape), out.shape[1])))
    for epoch in range(10):
        run.begin_epoch(epoch)
        seen.clear()
        step(wrapper, optimizer)
        assert seen == {((2, 3, *run.network.current.resolution), model.conv1.out_channels)}
        all_seen |= seen
    run.end()
    assert len(all_seen) > 1 and run.network.current == run.network.dense


def test_copies_on_several_devices_search_nothing():
    method = morphogen.AutoProg(stages=2, search_epochs=1, dimensions=("resolution",))
    probe = morphogen.Probe(lambda x, y: x.sum(), [(image(4), torch.arange(4))])
    model, optimizer, run = attached(method, probe=probe)
    run.begin_epoch(0)
    with pytest.raises(ConfigError, match="DataParallel runs copies of the model, and 'search' follows each step"):
        step(Copies(model), optimizer)
