"""What a run notices of the loop around it, and what the loop need not do: members of the kinds that lost trainings."""

import copy
import io
import math
import warnings

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.extend import Average, CheckpointError, ConfigError, MorphError, Search
from morphogen.methods import Dense

from nets import Plain, Residual, Tower, image
from planted import plant_sparse

WIDE = morphogen.NetworkExpansion(width=0.5, stages=2)
DEEP = morphogen.Prog(stages=2)
FOLLOWED = morphogen.Prog(stages=2, decay=0.5)  # so few steps need a decay to have an average that is not the weights


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def seeded(make=Tower, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def step(model, optimizer, images=None, loss_of=lambda loss: loss) -> None:
    optimizer.zero_grad()
    loss_of(model(image(4) if images is None else images).square().mean()).backward()
    optimizer.step()


def attached(method, make=Tower, epochs=4, optimizer=sgd, **settings):
    model = seeded(make)
    its = optimizer(model)
    return model, its, morphogen.attach(model, its, method, example=image(4), epochs=epochs, **settings)


def quiet_run(method, make=Tower, epochs=4, hooks=True, steps=3):
    """A whole run, by hooks or by all calls."""
    model, optimizer, run = attached(method, make, epochs, steps_per_epoch=steps, hooks=hooks)
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        run.begin_epoch(epoch)
        for _ in range(steps):
            images = image(4)
            if hooks:
                step(model, optimizer, images, run.penalised)
            else:
                step(model, optimizer, run.begin_step(images), run.penalised)
                run.end_step()
    run.end()
    return model


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


def test_a_loaded_state_allows_any_epoch():
    model, optimizer, run = attached(WIDE)
    run.begin_epoch(0)
    state, weights = copy.deepcopy(run.state_dict()), copy.deepcopy(model.state_dict())
    for load in (lambda: run.load_state_dict(state), lambda: model.load_state_dict(weights)):
        run.begin_epoch(1)
        step(model, optimizer)
        load()
        run.begin_epoch(0)


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
    assert sizes == [4] * 6 + [8, 8, 8, 8, 8, 12]  # the run is over, and so are its hooks


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


def test_early_stopping():
    model, _, run = attached(WIDE, make=Residual, epochs=6)
    run.begin_epoch(0)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"in epoch 0 of 6.*not at its full size \(.*channels\); run\.end\(grow=True"):
        run.end()
    model.load_state_dict(best)
    run.end(grow=True)
    Residual().load_state_dict(model.state_dict())


def test_a_smaller_state_after_the_end_is_said():
    model, _, run = attached(morphogen.NetworkExpansion(width=0.5, stages=3), make=Residual, epochs=6)
    run.begin_epoch(0)
    best = copy.deepcopy(model.state_dict())
    run.begin_epoch(1)
    run.begin_epoch(2)
    with pytest.warns(UserWarning, match="not at its full size"):
        run.end()
    with pytest.warns(UserWarning, match=r"of a smaller network, and the run is over .*run\.end\(grow=True\)"):
        model.load_state_dict(best)
    run.end(grow=True)
    Residual().load_state_dict(model.state_dict())


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


@pytest.mark.parametrize("grow", [False, True])
def test_a_finished_run_is_an_ordinary_model(grow):
    model, optimizer, run = attached(DEEP, steps_per_epoch=1, epochs=2)
    names = [name for name in vars(model) if name.endswith("hooks")] + ["_state_dict_hooks"]
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(model, optimizer)
    assert run.ended and run.end(grow=grow) is None
    assert not any(getattr(model, name) for name in names)
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_load_state_dict_pre_hooks
    assert "morphogen" not in model.state_dict()._metadata[""] and "morphogen" not in optimizer.state_dict()
    with pytest.raises(ConfigError, match="the run is over"):
        run.begin_epoch(1)


def test_the_last_step_prunes():
    model, optimizer, run = attached(morphogen.PruneTrain(interval=2), make=Residual, epochs=2, steps_per_epoch=1)
    optimizer.param_groups[0]["lr"] = 0.0  # what is planted stays
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(model, optimizer, loss_of=run.penalised)
        if epoch == 0:
            plant_sparse(run.network, run.network.subnetwork(width=0.5))
    assert run.ended and run.end() is not None and run.network.current != run.network.dense


def saved(value):
    """Through a file, as scripts do it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def cleaned(state):
    """timm's way: another dictionary of the same tensors."""
    return {name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("through", [lambda state: state, cleaned], ids=["as it is", "cleaned"])
@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("method", [WIDE, FOLLOWED, WIDE + morphogen.ProgressiveResizing(stages=4)], ids=str)
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


@pytest.mark.parametrize("make", [timm.utils.ModelEmaV3, torch.optim.swa_utils.AveragedModel])
def test_averages_made_after_attach_follow(make):
    model, optimizer, run = attached(WIDE + DEEP, steps_per_epoch=1)
    run.begin_epoch(0)
    average, best = make(model), copy.deepcopy(model)
    count = sum(p.numel() for p in best.parameters())
    for epoch in range(4):
        run.begin_epoch(epoch)
        step(model, optimizer)
        (average.update if hasattr(average, "update") else average.update_parameters)(model)
    Tower().load_state_dict(average.module.state_dict())
    assert sum(p.numel() for p in best.parameters()) == count  # the best so far stays as it was


def test_drop_path_of_the_loops_own_stays():
    model, optimizer, run = attached(morphogen.ProgressiveResizing(stages=2))
    drops = [module for module in model.modules() if hasattr(module, "drop_prob")]
    for drop in drops:
        drop.drop_prob = 0.3
    for epoch in range(4):
        run.begin_epoch(epoch)
        step(model, optimizer)
    assert drops and {drop.drop_prob for drop in drops} == {0.3}


class Segmentation(nn.Module):
    """Maps of half the image's size, in a dictionary beside a score."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.score = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.body(x).relu()
        return {"out": self.head(x), "score": self.score(x.mean((2, 3)))}


def test_maps_come_back_to_the_size_of_the_masks():
    model = seeded(Segmentation)
    optimizer, images, masks = sgd(model), image(2, 16), torch.randint(5, (2, 8, 8))
    run = morphogen.attach(model, optimizer, morphogen.ProgressiveResizing(stages=2), example=images, epochs=4)
    for epoch in range(4):
        run.begin_epoch(epoch)
        F.cross_entropy(model(images)["out"], masks).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert model.eval()(image(2, 32))["out"].shape == (2, 5, 16, 16)
            assert model.train()(images)["score"].shape == (2, 2)


def test_masks_by_hand():
    model = seeded(Segmentation)
    optimizer, images, masks = sgd(model), image(2, 16), torch.randint(5, (2, 16, 16))
    method = morphogen.ProgressiveResizing(stages=2)
    run = morphogen.attach(model, optimizer, method, example=images, epochs=4, hooks=False)
    run.begin_epoch(0)
    small, classes, maps = run.begin_step(images, masks, masks[:, None].float())
    assert small.shape == (2, 3, 8, 8) and classes.shape == (2, 8, 8) and maps.shape == (2, 1, 8, 8)
    assert torch.equal(classes, masks[:, 1::2, 1::2]) and torch.equal(maps[:, 0].long(), classes)


def test_places_that_cannot_come_back_are_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)

        def forward(self, x):
            return self.embed(x).flatten(2).transpose(1, 2)

    model = Tokens()
    settings = {"example": image(2, 16), "epochs": 4}
    with pytest.raises(ConfigError, match=r"Tokens: all that this model returns follows the image's grid.*hooks=False"):
        morphogen.attach(model, sgd(model), morphogen.ProgressiveResizing(stages=2), **settings)
    morphogen.attach(model, sgd(model), morphogen.ProgressiveResizing(stages=2), **settings, hooks=False)


def test_masks_that_a_model_is_given_are_no_images():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
            self.seen = []

        def forward(self, mask, x):
            self.seen.append((mask.shape[-1], x.shape[-1]))
            return self.head(self.body(x).mean((2, 3)))

    model = Masked()
    optimizer, masks, images = sgd(model), torch.zeros(2, 1, 8, 8), image(2)
    model.seen.clear()
    run = morphogen.attach(model, optimizer, morphogen.NetworkExpansion(stages=2), example=(masks, images), epochs=2)
    run.begin_epoch(0)
    model.seen.clear()
    model(masks, images)
    model(masks.long(), images)
    assert model.seen == [(8, 8), (8, 8)]


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (morphogen.NetworkExpansion(width=0.5, operator="random"), morphogen.Bert2BERT(width=0.5)),
        (morphogen.NetworkExpansion(width=0.5), morphogen.NetworkExpansion(width=0.7, operator="random")),
        (morphogen.NetworkExpansion(depth=0.5, decay=0.9), morphogen.Prog(decay=0.99)),
        (morphogen.ProgStack(depth_operator="mostack", decay=0.9), morphogen.ProgStack(depth_operator="mostack")),
        (morphogen.DynamicBatch(step=4), morphogen.DynamicBatch(step=8)),
        (morphogen.PruneTrain(), morphogen.OneTime()),
        (morphogen.EfficientTrain(), morphogen.ProgressiveResizing()),
        (morphogen.AutoProg(), morphogen.DynamicBatch()),
    ],
    ids=str,
)
def test_methods_that_do_not_go_together_are_refused_by_name(one, other):
    for methods in ((one, other), (other, one)):
        names = " \\+ ".join(sorted(map(str, methods)))
        with pytest.raises(ConfigError, match=f"^{names}: "):
            methods[0] + methods[1]


def test_the_same_twice_is_once():
    assert len((morphogen.PruneTrain() + morphogen.PruneTrain()).parts()) == 2
    assert attached(morphogen.PruneTrain() + morphogen.PruneTrain())[2].part(morphogen.extend.Prune) is not None


def test_the_order_of_methods_does_not_matter():
    one, other = morphogen.NetworkExpansion(width=0.5, stages=2, operator="random"), morphogen.Prog(stages=2)
    assert one + other == other + one
    models = [quiet_run(method).state_dict() for method in (one + other, other + one)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_compilers_limit_comes_back():
    net = morphogen.trace(Tower(), image())
    before = torch._dynamo.config.recompile_limit
    supernet = morphogen.extend.ElasticSupernet(net, [net.subnetwork(depth=0.5), net.dense])
    assert torch._dynamo.config.recompile_limit > before
    supernet.close()
    supernet.close()
    assert torch._dynamo.config.recompile_limit == before


# --- found by a hostile reader -----------------------------------------------------------------------------


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


def test_a_keeper_of_the_best_is_no_average():
    class Best:
        def update(self, model):
            self.model = copy.deepcopy(model)

    model, optimizer, run = attached(WIDE)
    best = Best()
    run.begin_epoch(0)
    step(model, optimizer)
    best.update(model)
    count = sum(p.numel() for p in best.model.parameters())
    run.begin_epoch(2)
    assert sum(p.numel() for p in best.model.parameters()) == count


def test_an_average_swapped_in_for_validation_changes_nothing():
    model, optimizer, run = attached(DEEP, steps_per_epoch=2)
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    for epoch in range(4):
        run.begin_epoch(epoch)
        for _ in range(2):
            step(model, optimizer)
            ema.update(model)
        average = run.part(Average).network
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(ema.module.state_dict())
        model.load_state_dict(own)
        assert run.part(Average).network is average
    with pytest.raises(ConfigError, match="over"):
        run.begin_epoch(2)


def test_a_finished_run_goes_back_with_its_hooks():
    model, optimizer, run = attached(DEEP, steps_per_epoch=1, epochs=2)
    run.begin_epoch(0)
    state = copy.deepcopy(run.state_dict())
    step(model, optimizer)
    run.begin_epoch(1)
    step(model, optimizer)
    finished = copy.deepcopy(run.state_dict())
    assert run.ended and not model._forward_pre_hooks
    run.load_state_dict(state)
    assert not run.ended and model._forward_pre_hooks
    step(model, optimizer)
    run.begin_epoch(1)
    other, its, fresh = attached(DEEP, steps_per_epoch=1, epochs=2)
    fresh.load_state_dict(finished)
    assert fresh.ended and not other._forward_pre_hooks
    step(other, its)


def test_images_inside_an_argument_are_resized():
    seen = []

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)

        def forward(self, batch):
            seen.append(tuple(batch["image"].shape[2:]))
            return self.head(self.body(batch["image"]).mean((2, 3)))

    model = Wrapped()
    optimizer = sgd(model)
    example = ({"image": image(4)},)
    method = morphogen.ProgressiveResizing(stages=2)
    run = morphogen.attach(model, optimizer, method, example=example, epochs=4)
    run.begin_epoch(0)
    seen.clear()
    step(model, optimizer, example[0])
    assert seen == [run.network.current.resolution] and seen != [tuple(example[0]["image"].shape[2:])]


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


# --- left over ---------------------------------------------------------------------------------------------


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


def test_a_run_that_ended_early_lets_go_when_another_begins():
    model, optimizer, run = attached(WIDE, make=Residual, epochs=6)
    run.begin_epoch(0)
    with pytest.warns(UserWarning, match="not at its full size"):
        run.end()
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    other = morphogen.attach(model, optimizer, WIDE, example=image(4), epochs=6)
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    other.begin_epoch(0)
    with pytest.raises(ConfigError, match="a run is attached to this model"):
        run.end(grow=True)
    other.end(grow=True)
    assert not model._load_state_dict_pre_hooks and not optimizer._optimizer_load_state_dict_pre_hooks


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


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.fixture
def alone():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("wrap", "late"),
    [
        (compiled, False),
        (nn.parallel.DistributedDataParallel, True),
        pytest.param(compiled, True, marks=pytest.mark.nightly),
        pytest.param(nn.parallel.DistributedDataParallel, False, marks=pytest.mark.nightly),
    ],
)
def test_averages_around_wrappers_follow(wrap, late, alone):
    make = torch.optim.swa_utils.AveragedModel
    model = seeded(Residual)
    optimizer, wrapper = sgd(model), wrap(model)
    average = None if late else make(wrapper)
    run = morphogen.attach(model, optimizer, WIDE, example=image(4), epochs=4, ema=average)
    for epoch in range(4):
        run.begin_epoch(epoch)
        average = make(wrapper) if average is None else average
        step(wrapper, optimizer)
        average.update_parameters(wrapper)
        average(image(4))
        if epoch == 1:
            run.load_state_dict(copy.deepcopy(run.state_dict()))
            average.load_state_dict(copy.deepcopy(average.state_dict()))
    inner = average.module._orig_mod if wrap is compiled else average.module.module
    Residual().load_state_dict(inner.state_dict())


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
