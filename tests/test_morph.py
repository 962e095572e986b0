"""Invariants 1 to 3 over random widths, optimizers, dtypes and memory formats."""

import copy
import functools

import pytest
import timm
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from timm.optim import Lookahead, create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import morphogen
from morphogen.dense.fake import FakeModel
from morphogen.morph import commit
from morphogen.pruning.sparsity import sparse_part

from checks import (
    assert_equals_masked_dense,
    assert_optimizer_holds_model,
    assert_survivors_equal,
    randomise_statistics,
    snapshot,
    take_steps,
)
from nets import NETS, PER_CHANNEL, Plain, Residual, image

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adadelta": torch.optim.Adadelta,
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}
# The explain phase traces every line of PyTorch, which takes minutes.
quick = settings(
    max_examples=settings().max_examples // 20,  # five; fifteen with -m nightly
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
structure_of = functools.cache(lambda name: morphogen.trace(NETS[name](), image()).structure)


def network(name, model, example=None):
    """A network without tracing anew."""
    return morphogen.Network(model, structure_of(name), FakeModel(model, image() if example is None else example))


@st.composite
def subnetworks(draw, net):
    """Any sub-network: for each group any non-empty set of units."""
    alive = {g.name: draw(st.lists(st.integers(0, g.size - 1), min_size=1, unique=True)) for g in net.groups}
    return net.subnetwork(alive=alive)


@pytest.mark.parametrize("name", PER_CHANNEL)
@quick
@given(data=st.data())
def test_a_subnetwork_equals_the_masked_dense_network(name, data):
    model = NETS[name]()
    randomise_statistics(model)
    net = network(name, model)
    assert_equals_masked_dense(net, data.draw(subnetworks(net)), image())


@pytest.mark.parametrize("name", NETS)
@quick
@given(data=st.data())
def test_any_walk_of_morphs_keeps_what_survives(name, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    memory_format = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    make = OPTIMIZERS[data.draw(st.sampled_from(["sgd", "adamw"]))]
    model = NETS[name]().to(dtype).to(memory_format=memory_format)
    x = image().to(dtype).contiguous(memory_format=memory_format)
    optimizer = make(model.parameters())
    net = network(name, model, x)
    identities = {n: id(t) for n, t in [*model.named_modules(), *model.named_parameters()]}
    take_steps(model, optimizer, x, steps=1)
    for _ in range(2):
        old, new = net.current, data.draw(subnetworks(net))
        before = snapshot(model, optimizer)
        morphogen.morph(net, new, optimizer=optimizer, operator=data.draw(st.sampled_from(["orthogonal", "replicate"])))
        assert_survivors_equal(net, before, old, new, snapshot(model, optimizer))
        assert_optimizer_holds_model(model, optimizer)
        assert identities == {n: id(t) for n, t in [*model.named_modules(), *model.named_parameters()]}
        for parameter in model.parameters():
            assert parameter.dtype == dtype and parameter.requires_grad
            if parameter.ndim == 4 and min(parameter.shape) > 1:
                assert parameter.is_contiguous(memory_format=memory_format)
        take_steps(model, optimizer, x, steps=1)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    NETS[name]().to(dtype).load_state_dict(model.state_dict())


@quick
@given(data=st.data())
def test_widen_then_narrow_is_the_identity(data):
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    net = network("Residual", model)
    small = data.draw(subnetworks(net))
    morphogen.morph(net, small, optimizer=optimizer)
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    morphogen.morph(net, small, optimizer=optimizer)
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al., 2024): the weights follow an average of `z`, which begins as they do."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 0.1)


def by_timm(name, **settings):
    return lambda params: create_optimizer_v2([*params], name, lr=0.01, **settings)


STILL = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0, amsgrad=True, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "schedule-free": ScheduleFree,
    **{
        f"timm's {name}": by_timm(name)
        for name in ("adabelief", "adan", "adopt", "lamb", "lars", "lion", "madgrad", "nadamw", "rmsproptf")
    },
}
"""Optimizers that leave a weight where it is while it has no gradient, and never had one."""


@pytest.mark.parametrize("name", STILL)
def test_growth_a_step_shrinking_a_step(name):
    model = Residual()
    optimizer = STILL[name](model.parameters())
    net = network("Residual", model)
    half = net.subnetwork(width=0.5)
    morphogen.morph(net, half, optimizer=optimizer)
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    grown = snapshot(model, optimizer)
    assert_survivors_equal(net, before, half, net.dense, grown)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    stays = torch.equal(model.conv1.weight[:6, :4], grown["conv1.weight"][:6, :4])
    assert stays == (name in ("Adagrad", "Rprop"))  # the others' moments move the old weights
    for part in (model.conv1.weight[6:], model.conv1.weight[:, 4:]):  # as new ones do not
        before = grown["conv1.weight"][6:] if part.shape[0] == 6 else grown["conv1.weight"][:, 4:]
        torch.testing.assert_close(part, before, rtol=1e-6, atol=1e-6)
    take_steps(model, optimizer, image(), steps=1)
    before = snapshot(model, optimizer)
    morphogen.morph(net, half, optimizer=optimizer)
    assert_survivors_equal(net, before, net.dense, half, snapshot(model, optimizer))
    take_steps(model, optimizer, image(), steps=1)
    assert_optimizer_holds_model(model, optimizer)
    assert all(value.isfinite().all() for value in snapshot(model, optimizer).values())


UNFIT = {
    "Lookahead": (
        lambda p: Lookahead(torch.optim.AdamW(p)),
        "Lookahead keeps its state in another optimizer.*Train with",
    ),
    "Adafactor": (torch.optim.Adafactor, r"weight: Adafactor keeps a state that cannot follow.*'row_var'.*such as SGD"),
    "timm's": (
        by_timm("adafactor", min_dim_size_to_factor=4),
        r"conv1\.weight: Adafactor keeps a state.*exp_avg_sq_row",
    ),
    "another model's": (lambda p: torch.optim.SGD(Residual().parameters(), 0.1), "no parameter that is the model's"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_optimizer_that_cannot_follow_is_refused_before_training(name):
    make, message = UNFIT[name]
    for method in (morphogen.NetworkExpansion(stages=2), morphogen.PruneTrain()):
        model = Residual()
        optimizer = make(model.parameters())
        before = snapshot(model)
        with pytest.raises(morphogen.MorphError, match=message) as refused:
            morphogen.attach(model, optimizer, method, example=image(), epochs=2)
        assert "\n" not in str(refused.value)
        assert all(torch.equal(value, before[key]) for key, value in snapshot(model).items())


def test_an_optimizer_that_factors_goes_with_a_method_that_changes_no_weight():
    model = Residual()
    optimizer = torch.optim.Adafactor(model.parameters())
    run = morphogen.attach(model, optimizer, morphogen.ProgressiveResizing(stages=2), example=image(), epochs=2)
    for epoch in range(2):
        run.begin_epoch(epoch)
        take_steps(model, optimizer, image())
    model.state_dict()  # it was not told of the steps, so that this shows its end
    assert run.ended and len(run.history) == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_follow(name):
    model = Residual()
    optimizer = OPTIMIZERS[name](model.parameters())
    net = morphogen.trace(model, image())
    half = net.subnetwork(width=0.5)
    morphogen.morph(net, half, optimizer=optimizer)
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    assert_survivors_equal(net, before, half, net.dense, snapshot(model, optimizer))
    # New entries begin as the optimizer would begin them.
    other = Residual()
    fresh = OPTIMIZERS[name](other.parameters())
    zeroed = {n: torch.zeros_like(p) for n, p in other.named_parameters()}
    for n, parameter in other.named_parameters():
        parameter.grad = zeroed[n]
    fresh.step()
    state, begin = optimizer.state[model.conv1.weight], fresh.state[other.conv1.weight]
    for key in ("sum", "step_size", "exp_avg", "momentum_buffer"):
        if key in state:
            torch.testing.assert_close(state[key][6:, 4:], begin[key][6:, 4:])
    take_steps(model, optimizer, image())
    assert all(p.isfinite().all() for p in model.parameters())


def test_replicate_copies_group_by_group():
    model = Plain()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(alive={"conv1": [0, 2, 4]}))
    kept = model.conv1.weight.detach().clone()
    morphogen.morph(net, net.dense, operator="replicate")
    # units 1, 3, 5, 6, 7 are new and take 0, 2, 4, 0, 2 in turn
    assert torch.equal(model.conv1.weight, kept[[0, 0, 1, 1, 2, 2, 0, 1]])


def test_flattened_space_follows_its_channel():
    model = Plain()
    before = model.fc.weight.detach().clone().view(10, 16, 16)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(alive={"conv2": [1, 5, 9]}))
    assert torch.equal(model.fc.weight.view(10, 3, 16), before[:, [1, 5, 9]])


@pytest.mark.parametrize("kind", ["averaged", "timm", "copy"])
def test_ema_copies_follow(kind):
    model = Residual()
    ema = {
        "averaged": lambda: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        "timm": lambda: ModelEmaV3(model, decay=0.9),
        "copy": lambda: copy.deepcopy(model),
    }[kind]()
    inner = getattr(ema, "module", ema)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(1.0)
    net = morphogen.trace(model, image())
    kept = inner.conv1.weight.detach().clone()
    morphogen.morph(net, net.subnetwork(width=0.5), ema=ema)
    assert torch.equal(inner.conv1.weight, kept[:6, :4]) and inner.conv1.out_channels == 6
    morphogen.morph(net, net.dense, ema=ema)
    assert torch.equal(inner.conv1.weight[:6, :4], kept[:6, :4])
    assert torch.equal(inner.conv1.weight[6:], model.conv1.weight[6:])  # new: the model's own value
    inner(image())
    if kind == "averaged":
        ema.update_parameters(model)
    elif kind == "timm":
        ema.update(model)


def test_a_loss_still_alive_does_not_break_the_next_step():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    net = morphogen.trace(model, image())
    hits = []
    model.conv1.weight.register_post_accumulate_grad_hook(lambda p: hits.append(tuple(p.shape)))
    loss = model(image()).sum()
    loss.backward()
    morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer)
    again = model(image()).sum()
    again.backward()
    optimizer.step()
    assert hits == [(8, 3, 3, 3), (4, 3, 3, 3)] and loss.requires_grad


def test_frozen_parameters_stay_frozen_and_hooks_stay():
    model = Residual()
    model.conv1.weight.requires_grad_(False)
    called = []
    model.conv1.register_forward_hook(lambda *_: called.append(1))
    net = morphogen.trace(model, image())
    assert not called  # tracing runs no hooks
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert not model.conv1.weight.requires_grad and model.conv2.weight.requires_grad and not called
    model(image())
    assert called


def test_a_failing_operator_leaves_everything_as_it_was():
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer)
    take_steps(model, optimizer, image())
    before, current = snapshot(model, optimizer), net.current

    def wrong(gap):
        return gap.old if gap.map.name == "bn2.weight" else commit.named("random").fill(gap)

    with pytest.raises(morphogen.MorphError, match=r"bn2\.weight"):
        morphogen.morph(net, net.dense, optimizer=optimizer, operator=wrong)
    after = snapshot(model, optimizer)
    assert net.current == current and model.conv1.out_channels == 6
    assert all(torch.equal(before[key], after[key]) for key in before)


class BakedIn(torch.nn.Module):
    """A view with sizes written into the code."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.fc = torch.nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.fc(self.conv(x).view(-1, 512))


def test_sizes_written_into_the_code_pin():
    net = morphogen.trace(BakedIn(), image())
    assert not net.groups
    assert any(pin.axis == "conv.weight[0]" and "written in the model's code" in pin.reason for pin in net.pinned)


def test_foreign_and_unfit_optimizers_are_refused():
    model = Residual()
    net = morphogen.trace(model, image())
    half = net.subnetwork(width=0.5)
    with pytest.raises(morphogen.MorphError, match="no parameter that is the model's"):
        morphogen.morph(net, half, optimizer=torch.optim.SGD(Residual().parameters(), 0.1))
    by_rows = torch.optim.Adam(model.parameters())
    by_rows.state[model.conv1.weight]["rows"] = torch.zeros(12)
    with pytest.raises(morphogen.MorphError, match=r"conv1\.weight: Adam keeps a state.*found 'rows' of shape \(12,\)"):
        morphogen.morph(net, half, optimizer=by_rows)
    with pytest.raises(morphogen.MorphError, match="growth operator 'magic'"):
        morphogen.morph(net, half, operator="magic")
    with pytest.raises(morphogen.MorphError, match="current sub-network"):
        morphogen.morph(net, half, ema=Plain())
    assert net.current == net.dense


def test_several_optimizers():
    model = Residual()
    head = torch.optim.Adam(model.fc.parameters())
    body = torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("fc")], 0.1, momentum=0.9)
    net = morphogen.trace(model, image())
    model(image()).sum().backward()
    head.step()
    body.step()
    morphogen.morph(net, net.subnetwork(width=0.5), optimizer=[head, body])
    assert head.state[model.fc.weight]["exp_avg"].shape == (10, 4)
    assert body.state[model.conv1.weight]["momentum_buffer"].shape == (6, 4, 3, 3)


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("operator", ["orthogonal", "random"])
def test_another_default_device_changes_nothing(elsewhere, operator):
    with torch.device("cpu"):
        model = Residual()
    net = morphogen.trace(model, torch.randn(2, 3, 8, 8, device="cpu"))
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense, operator=operator, generator=torch.Generator("cpu").manual_seed(0))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    with torch.device("cpu"):
        model(image()).sum().backward()


def test_another_default_device_for_resolution_and_depth(elsewhere):
    """The model is asked about sizes, and about blocks that can be silent, where its copies are."""
    with torch.device("cpu"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=4, num_heads=2)
    net = morphogen.trace(model, torch.randn(2, 3, 32, 32, device="cpu"))
    small = net.subnetwork(depth=0.5, resolution=16)
    assert small.resolution == (16, 16)
    morphogen.morph(net, small)
    assert model(torch.randn(2, 3, 16, 16, device="cpu")).shape == (2, 1000)
    morphogen.morph(net, net.dense, depth_operator="identity")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_another_default_device_while_pruning(elsewhere):
    with torch.device("cpu"):
        model = Residual()
        net = morphogen.trace(model, image())
        with torch.no_grad():
            model.conv1.weight[5:] = model.conv2.weight[:, 5:] = 0
        expected = sparse_part(net, threshold=1e-3)
    assert sparse_part(net, threshold=1e-3) == expected != net.dense
