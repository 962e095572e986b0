"""How many of the last layers to train, found without training: by hand, without a trace, resumed, on which models."""

import copy
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.errors import CheckpointError, ConfigError, TrainingError
from morphogen.parts import search_shares
from morphogen.parts.search_shares import SearchShares
from morphogen.parts.unfreeze import frozen_first
from morphogen.report.page.found import draw_searches as page_of
from morphogen.report.searches import draw_searches, search_rows, search_title
from morphogen.search.candidates import Found
from morphogen.search.zero_cost import Convergence, condition_number, search_without_training
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from golden import USUAL
from nets import Tower, deit, image

METHOD = morphogen.AutoProgZero(shares=(0.3, 0.6, 1.0), stages=3)


@pytest.fixture
def rising(monkeypatch):
    """The first search of a run names the smallest share, later ones the second of their candidates."""

    def search(network, frozen, probe, resize, epoch):
        return replace(search_without_training(network, frozen, probe, resize, epoch), chosen=int(epoch > 0))

    monkeypatch.setattr(search_shares, "search_without_training", search)


class Two(nn.Module):
    """y = w A x, with w = (1, 1) and A = diag(2, 1)."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
            self.head.weight.fill_(1.0)

    def forward(self, x):
        return self.head(self.first(x))


class Modulated(nn.Module):
    """A block of a diffusion transformer: attention and MLP, shifted, scaled and gated by the condition (adaLN)."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(c)).unsqueeze(1).chunk(6, -1)
        q, k, v = self.qkv(self.norm1(x) * (1 + scale1) + shift1).chunk(3, -1)
        x = x + gate1 * self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + gate2 * self.fc2(F.gelu(self.fc1(self.norm2(x) * (1 + scale2) + shift2)))


class DiT(nn.Module):
    """A small diffusion transformer: noisy images, times and classes to the noise."""

    def __init__(self, dim=12, depth=4, side=8, classes=3):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 2, 2)
        self.position = nn.Parameter(torch.randn(1, (side // 2) ** 2, dim) / 5)
        self.time, self.label = nn.Linear(2, dim), nn.Embedding(classes, dim)
        self.blocks = nn.ModuleList([Modulated(dim) for _ in range(depth)])
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, 12)
        self.side = side // 2

    def forward(self, x, t, y):
        c = self.time(torch.stack([t.sin(), t.cos()], 1)) + self.label(y)
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, c)
        x = self.out(self.norm(x)).unflatten(1, (self.side, self.side)).unflatten(3, (3, 2, 2))
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def denoising(model):
    """The loss of a diffusion model: times and noise drawn anew."""

    def loss(images, labels):
        t, noise = torch.rand(len(images)), torch.randn_like(images)
        noisy = (1 - t).view(-1, 1, 1, 1) * images + t.view(-1, 1, 1, 1) * noise
        return F.mse_loss(model(noisy, t, labels), noise)

    return loss


def batches(count=3, size=4, side=8, classes=2):
    numbers = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, side, side, generator=numbers), torch.randint(classes, (size,), generator=numbers))
        for _ in range(count)
    ]


def classify(model):
    return lambda images, labels: F.cross_entropy(model(images), labels)


def unsized(images, resolution):
    return images


class Loop:
    def __init__(self, seed=0, method=METHOD, model=None, loss=None, example=None, hooks=True):
        torch.manual_seed(seed)
        self.model = Tower(4) if model is None else model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2, weight_decay=0.1)
        self.data, self.loss = batches(), loss or classify(self.model)
        self.run = morphogen.attach(
            self.model, self.optimizer, method, example=self.data[0][0] if example is None else example,
            epochs=6, steps_per_epoch=2, hooks=hooks, probe=morphogen.Probe(self.loss, self.data),
        )  # fmt: skip
        self.part = self.run.part(SearchShares)

    def train(self, first=0, until=6):
        for epoch in range(first, until):
            torch.manual_seed(epoch)
            self.run.begin_epoch(epoch)
            for images, labels in self.data[:2]:
                self.optimizer.zero_grad()
                self.loss(images, labels).backward()
                self.optimizer.step()
        return self


# ---------------------------------------------------------------- by hand


def test_zico_by_hand():
    """log of the sum of mean / deviation of the absolute gradients, of entries that change at all; layer by layer."""
    convergence = Convergence()
    convergence.add({"a": torch.tensor([1.0, -2.0, 1.0]), "b": torch.tensor([5.0]), "c": torch.zeros(2)})
    convergence.add({"a": torch.tensor([-3.0, 2.0, 5.0]), "b": torch.tensor([-5.0]), "c": torch.tensor([0.0, 2.0])})
    # a: (1, 3): 2 / 1; (2, 2) counts nothing; (1, 5): 3 / 2. b never changes. c: (0, 2): 1 / 1.
    assert convergence.zico() == pytest.approx({"a": math.log(3.5), "c": 0.0})


def test_the_condition_number_by_hand():
    assert condition_number(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()) == pytest.approx(3.0)
    assert condition_number(torch.ones(2, 2).double()) == 2.0**23  # two images alike
    assert math.isnan(condition_number(torch.zeros(2, 2).double()))
    assert math.isnan(condition_number(torch.full((2, 2), math.inf).double()))


def test_a_search_by_hand():
    """Images (1, 0) and (0, 2), and three times them. J of the head is A x, that of A is w x^T, with |w|^2 = 2."""
    model = Two()
    net = morphogen.trace(model, torch.randn(2, 2))
    frozen = {share: frozen_first(net, share) for share in (0.5, 1.0)}
    assert frozen == {0.5: {"first.weight"}, 1.0: frozenset()}
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    probe = morphogen.Probe(lambda images, _: model(images).mean(), [(x, None), (3 * x, None)])
    found = search_without_training(net, frozen, probe, unsized, epoch=5)
    head, whole = (candidate.zero_cost for candidate in found.candidates)
    # Kernels of the first batch: diag(4, 4), and with 2 diag(1, 4) on top diag(6, 12). Those of the second: 9 times.
    assert (head.condition, whole.condition) == pytest.approx((1.0, 2.0))
    # Gradients are 1 and 3 (head), 1/2 and 3/2 or 1 and 3 (A): each entry's mean is twice its deviation.
    assert (head.zico, whole.zico) == pytest.approx((math.log(2 * 2), math.log(2 * 2) + math.log(4 * 2)))
    # Forward 8 + 4; backward of the head's weight 4, of its input 4, of A 8.
    assert (head.flops, whole.flops) == (16, 28) and (head.share, whole.share) == (0.5, 1.0)
    # One is better in the one, the other in the other: alike, so that the cheaper one goes on.
    assert [candidate.loss for candidate in found.candidates] == pytest.approx([1.0, 1.0])
    assert found.chosen == 0 and found.epoch == 5 and found.exponent == 0


def test_gradients_of_the_last_layers_serve_every_candidate():
    """What is measured of a share is what is measured where the rest is really frozen."""
    model = deit(depth=4).double()
    data = [(x.double(), y) for x, y in batches(side=16)]
    net = morphogen.trace(model, data[0][0])
    frozen = {share: frozen_first(net, share) for share in (0.3, 0.6, 1.0)}
    probe = morphogen.Probe(classify(model), data)
    together = search_without_training(net, frozen, probe, unsized, 0)
    for share, candidate in zip(frozen, together.candidates, strict=True):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen[share])
        (alone,) = search_without_training(net, {share: frozen[share]}, probe, unsized, 0).candidates
        for figure in ("condition", "zico", "flops"):
            assert getattr(candidate.zero_cost, figure) == pytest.approx(getattr(alone.zero_cost, figure), rel=1e-9)


# ---------------------------------------------------------------- no trace


def everything(loop):
    """All that a search must leave as it is, to the last bit."""
    parameters = dict(loop.model.named_parameters())
    states = {name: loop.optimizer.state.get(p, {}) for name, p in parameters.items()}
    tensors = {name: value.clone() for name, value in loop.model.state_dict().items()}
    tensors |= {f"{n}/grad": p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    tensors |= {f"{n}/{key}": value.clone() for n, state in states.items() for key, value in state.items()}
    tensors["random"] = torch.get_rng_state()
    plain = [
        {name: (p.requires_grad, id(p), id(p.grad)) for name, p in parameters.items()},
        {name: module.training for name, module in loop.model.named_modules()},
        repr(random.getstate()),
        repr(np.random.get_state()),
    ]
    return tensors, plain


def test_a_search_leaves_no_trace(rising):
    loop = Loop(model=Tower(4, rate=0.3)).train(until=1)
    assert loop.run.network.frozen  # gradients of frozen layers are taken all the same
    loop.model.blocks[1].eval()

    def drawing(images, labels):
        random.random(), np.random.rand()
        return F.cross_entropy(loop.model(images + torch.randn_like(images)), labels)

    calls = []

    def failing(images, labels):
        calls.append(images)
        if len(calls) > 3:
            raise ZeroDivisionError
        return drawing(images, labels)

    frozen = {share: frozen_first(loop.run.network, share) for share in METHOD.shares}
    before = everything(loop)
    with loop.run.measuring():
        for loss in (drawing, failing):
            try:
                found = search_without_training(loop.run.network, frozen, morphogen.Probe(loss, loop.data), unsized, 0)
            except ZeroDivisionError:
                assert loss is failing
    after = everything(loop)
    assert before[0].keys() == after[0].keys() and before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    again = search_without_training(loop.run.network, frozen, morphogen.Probe(drawing, loop.data), unsized, 0)
    assert again.candidates == found.candidates  # nor does one search leave anything to the next


# ---------------------------------------------------------------- in a run


def test_a_run_trains_what_it_found_and_never_less(rising):
    loop, shares = Loop(), []
    for epoch in range(6):
        loop.train(epoch, epoch + 1)
        shares.append(METHOD.shares[loop.part._stage])
        frozen = {name for name, p in loop.model.named_parameters() if not p.requires_grad}
        assert frozen == (frozen_first(loop.run.network, shares[-1]) if epoch < 5 else set())  # the run is over then
    assert shares == [0.3, 0.3, 0.6, 0.6, 1.0, 1.0]
    assert [(found.epoch, found.seconds > 0) for found in loop.part.searches] == [(0, True), (2, True)]
    assert [epoch for epoch, _ in loop.run.history] == [0, 2, 4]
    assert loop.run.ended and all(p.requires_grad for p in loop.model.parameters())


def test_without_anything_planted_it_follows_the_scores():
    loop = Loop().train(until=1)
    (found,) = loop.part.searches
    logs = [math.log(c.loss) + found.exponent * math.log(c.zero_cost.flops) for c in found.candidates]
    assert found.chosen == logs.index(min(logs)) == loop.part._stage


def test_where_all_is_trained_nothing_is_searched(monkeypatch):
    seen = []

    def search(*given):
        seen.append(given[-1])
        return replace(search_without_training(*given), chosen=2)

    monkeypatch.setattr(search_shares, "search_without_training", search)
    assert Loop().train().part._stage == 2 and seen == [0]


def test_a_run_goes_on_bit_for_bit(rising):
    whole = Loop().train()
    for until in (1, 2, 3):
        other = Loop(seed=7)
        other.run.load_state_dict(copy.deepcopy(Loop().train(until=until).run.state_dict()))
        other.train(until)
        assert all(torch.equal(tensor, other.model.state_dict()[n]) for n, tensor in whole.model.state_dict().items())
        assert [f.candidates for f in whole.part.searches] == [f.candidates for f in other.part.searches]
    state = Loop().train(until=1).run.state_dict()
    for key, wrong in [("entered", 3), ("entered", None), ("entered", True), ("stage", 3), ("searches", [{}])]:
        broken = copy.deepcopy(state)
        broken["parts"]["unfreeze"][key] = wrong
        with pytest.raises(CheckpointError):
            Loop().run.load_state_dict(broken)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    model = deit(depth=4)
    data = batches(side=16)
    net = morphogen.trace(model, data[0][0])
    frozen = {share: frozen_first(net, share) for share in (0.3, 1.0)}

    def loss(images, labels):
        with torch.autocast("cpu", dtype):
            return F.cross_entropy(model(images), labels) / 1e4  # gradients that float16 has no numbers for

    plain = search_without_training(net, frozen, morphogen.Probe(classify(model), data), unsized, 0)
    mixed = search_without_training(net, frozen, morphogen.Probe(loss, data), unsized, 0)
    for one, two in zip(plain.candidates, mixed.candidates, strict=True):
        assert two.zero_cost.zico == pytest.approx(one.zero_cost.zico, rel=0.1)
        assert math.log(two.zero_cost.condition) == pytest.approx(math.log(one.zero_cost.condition), rel=0.3)


def test_a_diffusion_transformer(rising):
    torch.manual_seed(0)
    model = DiT()
    example = (image(4), torch.rand(4), torch.randint(2, (4,)))
    loop = Loop(model=model, loss=denoising(model), example=example)
    before = copy.deepcopy(model.state_dict())
    loop.train(until=1)
    assert len(loop.part.searches) == 1 and all(math.isfinite(c.loss) for c in loop.part.searches[0].candidates)
    frozen = frozen_first(loop.run.network, METHOD.shares[loop.part._stage])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name
    for share in METHOD.shares:  # a block as a whole, its modulation too
        left = frozen_first(loop.run.network, share)
        for number in range(4):
            inside = {name for name, _ in model.named_parameters() if name.startswith(f"blocks.{number}.")}
            assert inside <= left or not inside & left
    loop.train(1)
    assert loop.run.ended
    DiT().load_state_dict(model.state_dict())


def test_beside_growth_it_looks_at_the_network_as_it_trained_last(rising):
    grow = morphogen.GrowOnce(pretrained=True, at=0.6, depth=0.5, resolution=0.5)
    sizes = []
    loop = Loop(method=grow + METHOD)

    def loss(images, labels):
        sizes.append((len(loop.run.network.current.blocks["blocks"]), images.shape[-1]))
        return F.cross_entropy(loop.model(images), labels)

    loop.run.probe = morphogen.Probe(loss, loop.data)
    loop.train()
    assert {*sizes[: len(sizes) // 2]} == {(4, 8)} and sizes[-1] == (2, 4) and len(loop.part.searches) == 2
    assert loop.run.network.current == loop.run.network.dense


# ---------------------------------------------------------------- records


def test_the_trainer_books_the_time_as_search():
    recipe = Recipe(**{**USUAL, "epochs": 3, "model": "nets:Residual"})
    run = Run(recipe, load_data(recipe), METHOD, "zero", seed=0)
    assert len(run.ledger.searches) == 1  # before the first step
    for _ in run.epochs():
        pass
    record = run.ledger.record()
    assert record["seconds"]["search"] == pytest.approx(sum(search["seconds"] for search in record["searches"]))
    assert record["seconds"]["search"] > 0 and record["seconds"]["trace"] > 0 and record["seconds"]["morph"] >= 0
    shares = [search["candidates"][search["chosen"]]["zero_cost"]["share"] for search in record["searches"]]
    assert shares == sorted(shares) and {search["epoch"] for search in record["searches"]} <= {0, 1}


def test_what_was_found_is_told(tmp_path):
    found = Loop().train(until=1).part.searches[0]
    record = json.loads(json.dumps(found.record()))
    assert Found.from_record(record) == found
    rows = search_rows(record)
    assert [row["share trained"] for row in rows] == ["0.3", "0.6", "1"] and "proxies x FLOPs" in search_title(record)
    assert [row["chosen"] for row in rows].count("yes") == 1
    draw_searches([record], tmp_path / "search.png")
    assert "".join(page_of([record]).itertext()).count("NTK condition number") == 1
    record["candidates"][0]["zero_cost"]["condition"] = None
    assert search_rows(record)[0]["NTK condition number"] == "not finite"


# ---------------------------------------------------------------- refusals


def constant(model):
    return lambda images, labels: torch.zeros(())


def around(model):
    return lambda images, labels: model.fc(model.conv1(images).mean((2, 3))).square().mean()


@pytest.mark.parametrize(
    "loss, subset, match",
    [
        (classify, batches(1), "several batches"),
        (classify, batches(2, size=1), "several images"),
        (constant, batches(), "does not depend"),
        (lambda model: lambda x, y: F.cross_entropy(model(x), y, reduction="none"), batches(), "cannot be used"),
        (around, batches(), "calls the model itself"),
    ],
)
def test_what_cannot_be_compared(loss, subset, match):
    model = Tower(4)
    model.eval()
    net = morphogen.trace(model, image(4))
    with pytest.raises(ConfigError, match=match):
        search_without_training(net, {1.0: frozenset()}, morphogen.Probe(loss(model), subset), unsized, 0)


def test_losses_that_are_not_finite():
    model = Tower(4)
    net = morphogen.trace(model, image(4))
    probe = morphogen.Probe(lambda x, y: F.cross_entropy(model(x), y) * math.inf, batches())
    with pytest.raises(TrainingError, match="no candidate has a finite loss"):
        search_without_training(net, {1.0: frozenset()}, probe, unsized, 0)


@pytest.mark.parametrize(
    "settings", [{"shares": (1.0,)}, {"shares": (0.5, 0.5)}, {"stages": 1}, {"subset": 0}, {"shares": (0.5, 2.0)}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="out of range"):
        morphogen.AutoProgZero(**settings)


def test_what_it_does_not_go_with():
    with pytest.raises(ConfigError, match="only one of several methods can unfreeze"):
        Loop(method=METHOD + morphogen.ProgressiveUnfreezing())
    with pytest.raises(ConfigError, match="neither be pruned nor searched"):
        Loop(method=METHOD + morphogen.PruneTrain(interval=1))
    model = Tower(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"attach\(\.\.\., probe="):
        morphogen.attach(model, optimizer, METHOD, example=image(), epochs=6)
    with pytest.raises(ConfigError, match="at most 2 stages"):
        morphogen.attach(
            model, optimizer, METHOD, example=image(), epochs=2, probe=morphogen.Probe(classify(model), batches())
        )
