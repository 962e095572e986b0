"""Averages of every kind that libraries keep change size along with the model."""

import copy
import weakref

import pytest
import torch
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import morphogen

from checks import take_steps
from nets import Residual, Tower, image


class ListEma:
    """As torch_ema and diffusers keep them: a list of tensors; torch_ema has weak references to the parameters too."""

    def __init__(self, model):
        parameters = list(model.parameters())
        self.decay, self.temp_stored_params = 0.5, None
        self.shadow_params = [p.clone().detach() for p in parameters]
        self._params_refs = [weakref.ref(p) for p in parameters]

    def update(self, model):
        parameters = [reference() for reference in self._params_refs]
        assert all(mine is theirs for mine, theirs in zip(parameters, model.parameters(), strict=True))
        with torch.no_grad():
            for shadow, parameter in zip(self.shadow_params, parameters, strict=True):
                shadow.sub_(0.5 * (shadow - parameter))

    def state_dict(self):
        return {"shadow_params": copy.deepcopy(self.shadow_params)}

    def load_state_dict(self, state):
        self.shadow_params = copy.deepcopy(state["shadow_params"])

    def values(self, model):
        return dict(zip(dict(model.named_parameters()), self.shadow_params, strict=True))


class DictEma:
    """The class that tutorials have: trained parameters by name, and room for a backup of them."""

    def __init__(self, model):
        self.model, self.decay, self.backup = model, 0.5, {}
        self.shadow = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}

    def update(self, model):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.shadow[name] = 0.5 * self.shadow[name] + 0.5 * parameter.data

    def values(self, model):
        return self.shadow


class Whole(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(10, 2)


class OfTheWhole:
    """An average of a model that the network is a part of."""

    def __init__(self, model):
        self.whole = Whole(model)
        self.ema = AveragedModel(self.whole, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def update(self, model):
        self.ema.update_parameters(self.whole)

    def values(self, model):
        return dict(self.ema.module.backbone.named_parameters())


class Inside:
    """A copy of the model inside another object."""

    def __init__(self, make, get):
        self.make, self.get = make, get

    def __call__(self, model):
        self.ema = self.make(model)
        return self

    def update(self, model):
        (getattr(self.ema, "update_parameters", None) or self.ema.update)(model)

    def values(self, model):
        return dict(self.get(self.ema).named_parameters())


KINDS = {
    "timm 1": Inside(lambda m: ModelEma(m, 0.5), lambda e: e.ema),
    "timm 2": Inside(lambda m: ModelEmaV2(m, 0.5), lambda e: e.module),
    "timm 3": Inside(lambda m: ModelEmaV3(m, 0.5), lambda e: e.module),
    "torch": Inside(lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5)), lambda e: e.module),
    "of the whole": OfTheWhole,
    "list": ListEma,
    "dictionary": DictEma,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", [Residual, Tower])
def test_every_kind_of_average_follows(kind, net):
    model = net()
    ema = KINDS[kind](model)
    given = getattr(ema, "ema", ema)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    network = morphogen.trace(model, image())
    method = morphogen.NetworkExpansion(**({"width": 0.5} if net is Residual else {"depth": 0.5}), stages=2)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=4, steps_per_epoch=1, ema=given)
    expected = None
    for epoch in range(4):
        before = {name: value.clone() for name, value in ema.values(model).items()}
        receipt = run.begin_epoch(epoch)
        values = ema.values(model)
        assert {n: v.shape for n, v in values.items()} == {n: p.shape for n, p in model.named_parameters()}
        for name, value in values.items():
            if receipt is None:
                assert torch.equal(value, before[name])
            elif name in receipt.changes:
                change = receipt.changes[name].map
                assert torch.equal(change.survivors(value), change.survivors_of_old(before[name]))
        if receipt is not None and epoch:
            grown = {**receipt.changes, **receipt.entered}
            assert grown and all(n in values for n in grown if n in dict(model.named_parameters()))
        take_steps(model, optimizer, image(), steps=1)
        expected = {n: 0.5 * v + 0.5 * p for (n, v), p in zip(values.items(), model.parameters(), strict=True)}
        ema.update(model)
    assert run.network.current == network.dense and expected is not None
    for name, value in ema.values(model).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_run_with_a_list_of_averages_resumes_bit_for_bit():
    def begun():
        torch.manual_seed(0)
        model = Residual()
        ema = ListEma(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        method = morphogen.NetworkExpansion(width=0.5, stages=2)
        run = morphogen.attach(model, optimizer, method, example=image(), epochs=4, ema=ema)
        return model, optimizer, ema, run

    def train(model, optimizer, ema, run, epochs):
        for epoch in epochs:
            run.begin_epoch(epoch)
            torch.manual_seed(epoch)
            take_steps(model, optimizer, image(), steps=1)
            ema.update(model)

    first = begun()
    train(*first, range(2))
    saved = copy.deepcopy(first[3].state_dict())
    own = first[2].state_dict(), copy.deepcopy(first[0].state_dict())
    torch.manual_seed(5)
    train(*first, range(2, 4))
    again = begun()
    again[3].load_state_dict(saved)
    torch.manual_seed(5)
    train(*again, range(2, 4))
    assert all(map(torch.equal, first[2].shadow_params, again[2].shadow_params))
    third = begun()  # a script's own checkpoint: the model's state brings the sizes, the average takes its own
    third[0].load_state_dict(own[1])
    third[2].load_state_dict(own[0])
    third[3].begin_epoch(2)
    assert [s.shape for s in third[2].shadow_params] == [p.shape for p in third[0].parameters()]


def test_a_morph_that_fails_leaves_a_list_of_averages_as_it_was():
    model = Tower()
    ema, network = ListEma(model), morphogen.trace(model, image())
    morphogen.morph(network, network.subnetwork(depth=0.5), ema=ema)
    held, references = [(s.data_ptr(), s.shape) for s in ema.shadow_params], list(ema._params_refs)

    def wrong(entry):
        raise RuntimeError("a depth operator of somebody's own")

    with pytest.raises(RuntimeError, match="somebody's own"):
        morphogen.morph(network, network.dense, ema=ema, depth_operator=wrong)
    assert [(s.data_ptr(), s.shape) for s in ema.shadow_params] == held and ema._params_refs == references


def test_what_holds_no_average_is_refused_in_one_line():
    class Other:
        def __init__(self):
            self.decay, self.weights = 0.9, [torch.zeros(3)]

    for ema in (Other(), [3.0], "ema"):
        model = Residual()
        with pytest.raises(
            morphogen.MorphError, match=r"ema is of the wrong kind.*list of its averaged parameters"
        ) as no:
            morphogen.attach(
                model,
                torch.optim.SGD(model.parameters(), 0.1),
                morphogen.NetworkExpansion(stages=2),
                example=image(),
                epochs=2,
                ema=ema,
            )
        assert "\n" not in str(no.value)
