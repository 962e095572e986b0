"""The first, smaller network is one that somebody would train, whatever the dense one's filters begin as."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import morphogen
from morphogen import NetworkExpansion

from airbench import airbench, identity_conv
from nets import Residual, image

HALF = NetworkExpansion(width=0.5, stages=2)


def attached(model, x, epochs=2, method=HALF, **settings):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.85, nesterov=True)
    return morphogen.attach(model, optimizer, method, example=x, epochs=epochs, **settings), optimizer


def largest_gradient(model, x, y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


def norms(weight):
    return weight.detach().flatten(1).norm(dim=1)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)


def test_airbench_trains_at_half_its_width_and_grows(batch):
    torch.manual_seed(0)
    x, y = batch
    model = airbench(x)
    dense, frozen = copy.deepcopy(model), model[0].weight.clone()
    run, optimizer = attached(model, x, steps_per_epoch=3)
    losses = []
    for epoch in range(2):
        if epoch == 0:
            # 24 to 32, 32 to 64 and 64 to 64 channels: of 16 filters 12 are an identity whose inputs are there; of 32
            # then 16, and 16 have lost theirs; of the square ones none.
            with pytest.warns(
                UserWarning, match=r"the first network lacks.*: 2 \(4 of 16\), 9 \(16 of 32\)\. They begin"
            ):
                run.begin_epoch(epoch)
            assert [c.out_channels for c in model if isinstance(c, nn.Conv2d)] == [12, 16, 16, 32, 32, 32, 32]
            assert all(norms(c.weight).min() > 0.1 for c in model if isinstance(c, nn.Conv2d))
            assert torch.equal(model[0].weight, frozen[:12])
            plain = airbench(x, (16, 32, 32))
            assert largest_gradient(model, x, y) < 10 * largest_gradient(plain, x, y)
        else:
            run.begin_epoch(epoch)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert all(loss < 5 for loss in losses) and losses[2] < losses[0]
    assert run.ended and torch.equal(model[0].weight, frozen) and not model[0].weight.requires_grad
    assert all(p.isfinite().all() for p in model.parameters())
    dense.load_state_dict(model.state_dict())


def test_what_is_filled_has_the_norm_it_had_and_all_else_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), identity_conv(8, 16), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))
    with torch.no_grad():
        model[2].weight[5] *= 3  # an identity of its own size
        model[2].weight[6] = 0  # what is empty in the dense network
    x, whole, ema = image(), model[2].weight.detach().clone(), copy.deepcopy(model)
    run, _ = attached(model, x, ema=ema)
    with pytest.warns(UserWarning, match=r": 2 \(3 of 8\)"):
        run.begin_epoch(0)
    weight = model[2].weight
    assert torch.equal(weight[:4], whole[:4, :4]) and not weight[6].any()
    torch.testing.assert_close(norms(weight)[4:], torch.tensor([1.0, 3.0, 0.0, 1.0]))
    assert (weight[[4, 5, 7]] != 0).all() and torch.equal(ema[2].weight, weight)


def test_layers_that_divide_by_the_size_of_their_filters():
    """Weight normalisation: an empty filter would be NaN."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), weight_norm(identity_conv(8, 16)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip
    run, _ = attached(model, image())
    with pytest.warns(UserWarning, match=r": 2\.parametrizations\.weight \(4 of 8\)"):
        run.begin_epoch(0)
    assert model(image()).isfinite().all()


def test_linear_layers_that_begin_as_an_identity():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.wide, self.last = nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 4)
            nn.init.eye_(self.wide.weight)

        def forward(self, x):
            return self.last(self.wide(self.first(x)).relu())

    model = Wide()
    run, _ = attached(model, torch.randn(2, 6))
    with pytest.warns(UserWarning, match=r": wide \(4 of 8\)"):
        run.begin_epoch(0)
    assert torch.equal(model.wide.weight[:4], torch.eye(4)) and (norms(model.wide.weight) > 0.99).all()


def test_transposed_and_grouped_convolutions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=2)
            self.up, self.depthwise = nn.ConvTranspose2d(16, 32, 2, stride=2), nn.Conv2d(32, 32, 3, groups=32)
            self.fc = nn.Linear(32, 10)
            nn.init.dirac_(self.depthwise.weight, groups=32)
            with torch.no_grad():
                nn.init.dirac_(self.two.weight[:4])  # of each group the first four filters
                nn.init.dirac_(self.two.weight[8:12])
                self.up.weight[:, :16] = 0
                self.up.weight[range(16), range(16), 0, 0] = 1

        def forward(self, x):
            return self.fc(self.depthwise(self.up(self.two(self.stem(x)))).mean((2, 3)))

    model = Net()
    run, _ = attached(model, image(size=4))
    with pytest.warns(UserWarning, match=r": two \(4 of 8\), up \(8 of 16\)\. They"):
        run.begin_epoch(0)
    filters = norms(model.two.weight), norms(model.up.weight.transpose(0, 1)), norms(model.depthwise.weight)
    assert all((each > 0.1).all() for each in filters)
    assert torch.equal(model.depthwise.weight[:, 0, 1, 1], torch.ones(16))


def test_frozen_filters_stay_empty_and_are_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), identity_conv(8, 16), nn.Conv2d(16, 4, 1))
    model[2].weight.requires_grad_(False)
    run, _ = attached(model, image())
    with pytest.warns(UserWarning, match=r": 2 \(4 of 8\)\. They are frozen and stay empty; leave.*exclude"):
        run.begin_epoch(0)
    assert not model[2].weight[4:].any()


@pytest.mark.parametrize("zero", ["bn2", "conv2"])
def test_a_branch_that_begins_silent_stays_silent_and_no_random_number_is_drawn(zero):
    model = Residual()
    nn.init.zeros_(getattr(model, zero).weight)
    run, _ = attached(model, image())
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.begin_epoch(0)
    assert torch.equal(torch.get_rng_state(), state) and not getattr(model, zero).weight.any()


def test_only_the_first_network_is_looked_at():
    """A run that goes on from its state has filters that are as they were trained."""
    runs = []
    for again in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), identity_conv(8, 16), nn.Conv2d(16, 4, 1))
        run, _ = attached(model, image(), epochs=4)
        if again:
            run.load_state_dict(runs[0])
            run.begin_epoch(1)
            assert not model[2].weight[5].any()
        else:
            with pytest.warns(UserWarning, match="begin anew"):
                run.begin_epoch(0)
            with torch.no_grad():
                model[2].weight[5] = 0
            runs.append(run.state_dict())
