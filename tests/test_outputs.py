"""Which outputs of a model matter, what that leaves to change, and how it is told."""

import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn

import morphogen
from morphogen.methods import build_method

X = torch.randn(2, 3, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Tokens(nn.Module):
    """Tokens (N, 4, 8) of images (N, 3, 8, 8); `form` says what is returned of (logits, state, states)."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.patches, self.blocks, self.head = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([Block(), Block()]), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        return self.form(self.head(states[-1].mean(1)), states[-1], states)


Named = namedtuple("Named", "logits last_hidden_state hidden_states")

WHOLE = 3 * 16 * 8 + 8 + 2 * (8 * 16 + 16 + 16 * 8 + 8) + 8 * 5 + 5  # 997
HALF = 3 * 16 * 4 + 4 + 2 * (4 * 8 + 8 + 8 * 4 + 4) + 4 * 5 + 5  # 373
INNER = 3 * 16 * 8 + 8 + 2 * (8 * 8 + 8 + 8 * 8 + 8) + 8 * 5 + 5  # 725: the stream stays, what is inside blocks halves


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def halved(form, **options):
    """Parameters at half width, a step there, and the way back."""
    model = Tokens(form)
    assert parameters(model) == WHOLE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = morphogen.trace(model, X, **options)
    morphogen.morph(net, net.subnetwork(width=0.5))
    left = parameters(model)
    assert round(100 * left / WHOLE) == round(100 * net.extent.share)
    model(X)
    morphogen.morph(net, net.dense)
    return left


@pytest.mark.parametrize(
    "form",
    [
        lambda logits, state, states: logits,
        lambda logits, state, states: {"logits": logits, "last_hidden_state": state},
        lambda logits, state, states: {"loss": logits.sum(), "logits": logits, "decoder_hidden_states": tuple(states)},
        Named,
        lambda logits, state, states: {"pred_boxes": logits, "encoder": {"last_hidden_state": state}, "embeds": state},
    ],
)
def test_what_shows_the_inside_beside_a_result_does_not_pin(form):
    assert halved(form) == HALF


@pytest.mark.parametrize(
    "form",
    [
        lambda logits, state, states: state,
        lambda logits, state, states: {"last_hidden_state": state, "hidden_states": states},
        lambda logits, state, states: {"hidden_states": states},
        lambda logits, state, states: {"logits": logits, "features": state},  # a loss may well read it
        lambda logits, state, states: (logits, states),
        lambda logits, state, states: [states, logits],
    ],
)
def test_what_may_be_meant_keeps_its_size(form):
    assert halved(form) in (INNER, INNER - 45 + 18)  # where nothing returns what the head makes, it has 2 classes


@pytest.mark.parametrize(
    ("form", "outputs", "left"),
    [
        (lambda logits, state, states: (logits, states), 0, HALF),
        (lambda logits, state, states: (logits, states), [0, "1.2"], INNER),
        (lambda logits, state, states: (logits, states), ["1"], INNER - 45 + 18),
        (lambda logits, state, states: {"logits": logits, "features": state}, "logits", HALF),
        (lambda logits, state, states: {"logits": logits, "last_hidden_state": state}, ["logits", 1], INNER),
        (lambda logits, state, states: {"a": {"b": logits, "c": state}}, ["a.b"], HALF),
        (lambda logits, state, states: {"a": {"b": logits, "c": state}}, ("a",), INNER),
    ],
)
def test_the_user_names_what_matters(form, outputs, left):
    assert halved(form, outputs=outputs) == left


@pytest.mark.parametrize("outputs", ["logit", 2, ["logits", "hidden"], []])
def test_an_output_that_is_not_there_is_told(outputs):
    with pytest.raises(morphogen.TraceError, match=r"some of logits, last_hidden_state"):
        morphogen.trace(Tokens(lambda a, b, c: {"logits": a, "last_hidden_state": b}), X, outputs=outputs)


def test_an_output_that_does_not_matter_follows_at_another_resolution_too():
    model = Tokens(lambda logits, state, states: {"logits": logits, "last_hidden_state": state})
    net = morphogen.trace(model, X)
    morphogen.morph(net, net.subnetwork(width=0.5, resolution=4))
    output = model(X[..., :4, :4])
    assert output["logits"].shape == (2, 5) and output["last_hidden_state"].shape == (2, 1, 4)
    morphogen.morph(net, net.dense)
    assert model(X)["last_hidden_state"].shape == (2, 4, 8)


@pytest.mark.parametrize(("method", "told"), [("Dense", 0), ("StackBERT", 0), ("NetworkExpansion", 1)])
def test_only_a_method_that_changes_the_width_is_told_how_much_of_it_can(method, told):
    model = Tokens(lambda logits, state, states: (logits, states))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = morphogen.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), build_method(method), example=X, epochs=9
        )
    run.end()
    found = [each for each in caught if "less than half" in str(each.message)]
    assert len(found) == told and all(each.filename == __file__ for each in found)


def test_the_line_says_how_much_can_change_and_what_does_not():
    with pytest.warns(UserWarning, match=r"less than half.*73 % of parameters.*Name the outputs that matter"):
        net = morphogen.trace(Tokens(lambda logits, state, states: (logits, states)), X)
    assert str(net.extent) == (
        "73 % of parameters at half width; the largest part that stays: "
        "patches.weight and 8 more because: output 1.0 of the model"
    )
    assert repr(net) == f"Tokens: 2 channel groups, 1 block stacks, 8 x 8 pixels; {net.extent}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = morphogen.trace(Tokens(lambda logits, state, states: logits), X)
    assert round(net.extent.share * WHOLE) == HALF


def test_attach_says_the_same_line_and_takes_the_same_outputs():
    model = Tokens(lambda logits, state, states: (logits, states))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = morphogen.attach(
            model,
            optimizer,
            morphogen.NetworkExpansion(width=0.5, stages=2),
            example=X,
            epochs=2,
            outputs=0,
            start_epoch=0,
        )
    assert "37 % of parameters at half width" in repr(run) and parameters(model) == HALF
    run.end()


class Masked(nn.Module):
    """Some tokens of all, as a masked autoencoder takes them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x, keep):
        x = self.a(x)
        some = torch.gather(x, 1, keep.unsqueeze(-1).repeat(1, 1, x.shape[-1]))
        back = torch.zeros_like(x).scatter(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]), self.b(some))
        return self.head(back.mean(1))


def test_gathering_along_one_axis_fixes_that_axis_alone():
    model = Masked()
    example = torch.randn(2, 6, 3), torch.tensor([[0, 2, 4], [1, 3, 5]])
    net = morphogen.trace(model, example)
    assert {g.name: g.size for g in net.groups} == {"a": 8, "b": 8} or [g.size for g in net.groups] == [8]
    masked = morphogen.extend.masked_dense(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.b.weight.shape[1] == 4
    torch.testing.assert_close(model(*example), masked(*example))
