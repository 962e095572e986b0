"""Ops without a rule of their own, read as what PyTorch makes them of; and a few rules that whole families lacked."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DeformConv2d, roi_align

import morphogen
from morphogen.dense.subnet import Role
from morphogen.graph.rules import LAYERS, RULES

from checks import assert_equals_masked_dense, assert_function_preserved


class Between(nn.Module):
    """An op on (2, 5, 16) features, between linear layers."""

    def __init__(self, op):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.op = op

    def forward(self, x):
        return self.last(self.op(self.second(self.first(x).relu())))


def of_tokens(h):
    return h @ h.mT + 9 * torch.eye(h.shape[1], dtype=h.dtype)


COMPOSED = {
    "swapdims": lambda h: h.swapdims(1, 2).relu().swapdims(1, 2),
    "adjoint": lambda h: h.adjoint().relu().adjoint(),
    "pairwise_distance": lambda h: h * F.pairwise_distance(h, h.roll(1, 1), eps=0).unsqueeze(-1),
    "cosine_similarity": lambda h: h * F.cosine_similarity(h, h.roll(1, 1), dim=-1).unsqueeze(-1),
    "cdist": lambda h: torch.cdist(h, h.roll(1, 1)) @ h,
    "std_mean": lambda h: h - torch.std_mean(h, 1, keepdim=True)[0],
    "aminmax": lambda h: h - torch.aminmax(h, dim=1, keepdim=True)[1],
    "nansum": lambda h: h + torch.nansum(h, 1, keepdim=True),
    "take_along_dim": lambda h: torch.take_along_dim(h, h.argsort(1), 1),
    "diff": lambda h: h.diff(dim=1),
    "trapezoid": lambda h: torch.trapezoid(h, dim=1).unsqueeze(1),
    "hstack": lambda h: torch.hstack([h, h]),
    "vstack": lambda h: torch.vstack([h, h]),
    "atleast_3d": torch.atleast_3d,
    "hsplit": lambda h: torch.cat(torch.hsplit(h[:, :4], 2)[::-1], 1),
    "fft_rfft": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=h.shape[1], dim=1),
    "fft_fft": lambda h: torch.fft.fft(h, dim=1, norm="ortho").real,
    "linalg_solve": lambda h: torch.linalg.solve(of_tokens(h), h),
}
OWN = {
    "cummax": lambda h: h.cummax(1)[0],
    "select_scatter": lambda h: h.select_scatter(h[:, 0] * 2, 1, 1),
    "slice_scatter": lambda h: h.slice_scatter(h[:, :1] * 2, 1, 1, 2),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([1]), 0.0),
    "complex": lambda h: torch.complex(h, 2 * h).abs(),
    "polar": lambda h: torch.polar(h, h).real,
    "view_as_real": lambda h: torch.view_as_real(torch.complex(h, 2 * h)).sum(-1),
    "view_as_complex": lambda h: torch.view_as_complex(torch.stack([h, 2 * h], -1)).imag,
    "dist": lambda h: h * torch.dist(h, 2 * h),
}


@pytest.mark.parametrize("name", [*COMPOSED, *OWN])
def test_channels_beside_the_axes_of_an_op_follow(name):
    assert (name in RULES) == (name in OWN)
    model, x = Between((COMPOSED | OWN)[name]).double(), torch.randn(2, 5, 6).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16, 16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)


MIXED = {
    "along the channels": lambda h: torch.fft.fft(h, dim=-1).real,
    "a size in the code": lambda h: torch.pixel_unshuffle(h.view(2, 5, 4, 4), 2).flatten(2).view(2, 5, 16),
    "neighbours": lambda h: F.local_response_norm(h.transpose(1, 2), 3).transpose(1, 2),
    "what has neither a rule nor pieces": lambda h: torch.block_diag(h[0], h[1]).sum() * h,
}


@pytest.mark.parametrize("name", MIXED)
def test_what_an_op_mixes_stays_whole(name):
    model, x = Between(MIXED[name]), torch.randn(2, 5, 6)
    net = morphogen.trace(model, x)
    assert [group.name for group in net.groups] == ["first"]
    morphogen.morph(net, net.subnetwork(width=0.5))
    model(x).sum().backward()


def test_a_size_of_the_code_that_goes_into_an_op_stays():
    class Renormed(Between):
        def __init__(self):
            super().__init__(None)
            self.channels = 16

        def forward(self, x):
            h = self.second(self.first(x).relu())
            return self.last(torch.fft.ifft(torch.fft.fft(h.flatten(1), n=5 * self.channels)).real.view(h.shape))

    net = morphogen.trace(Renormed(), torch.randn(2, 5, 6))
    assert [group.name for group in net.groups] == ["first"]


class Cells(nn.Module):
    """A recurrent cell, step by step, from a state of zeros that the code makes or the cell."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(6, 8), kind(8, 10, **settings), nn.Linear(10, 3)

    def forward(self, x):
        state = None
        for step in self.embed(x).unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(kind, bias):
    model, x = Cells(kind, bias=bias).double(), torch.randn(2, 4, 6).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [8, 10]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    assert (model.cell.input_size, model.cell.hidden_size) == (4, 5)


def test_a_bilinear_layer():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 12)
            self.both, self.head = nn.Bilinear(8, 12, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.both(self.left(x), self.right(x)).relu())

    model, x = Pairs().double(), torch.randn(4, 6).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [8, 12, 16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    for operator in ("quiet", "net2net"):
        morphogen.morph(net, net.subnetwork(width=0.5))
        assert_function_preserved(net, net.dense, x, operator)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_words(mode):
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.EmbeddingBag(30, 16, mode=mode), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.words(x).relu())

    model, x = Bags().double(), torch.randint(0, 30, (4, 5))
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    assert model.words.embedding_dim == 8


class Sentences(nn.Module):
    """Convolutions of one input channel, whose kernels span the features of words (Kim, EMNLP 2014)."""

    def __init__(self, features=16, span=16):
        super().__init__()
        self.words = nn.Embedding(30, features)
        self.convs = nn.ModuleList(nn.Conv2d(1, 8, (size, span)) for size in (2, 3))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.words(x).unsqueeze(1)
        return self.head(torch.cat([conv(x).relu().amax((2, 3)) for conv in self.convs], 1))


def test_a_kernel_that_spans_the_features_of_words():
    model, x = Sentences().double(), torch.randint(0, 30, (4, 7))
    net = morphogen.trace(model, x)
    assert sorted(group.size for group in net.groups) == [8, 8, 16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    assert model.convs[0].weight.shape == (4, 1, 2, 8)
    optimizer = torch.optim.Adam(model.parameters())
    for operator in ("quiet", "net2net"):
        morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer)
        model(x).sum().backward()
        optimizer.step()
        assert_function_preserved(net, net.dense, x, operator, optimizer=optimizer)


def test_a_kernel_that_moves_along_the_features_of_words():
    net = morphogen.trace(Sentences(span=15), torch.randint(0, 30, (4, 7)))
    assert sorted(group.size for group in net.groups) == [8, 8]


def test_modules_inside_a_sequential_in_which_one_has_two_names():
    class Block(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(8, 12, 1), activation, nn.Conv2d(12, 8, 1))
            self.activation = activation

        def forward(self, x):
            return self.activation(x + self.net(x))

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            activation = nn.ReLU()
            self.net = nn.Sequential(Block(activation), Block(activation))

        def forward(self, x):
            return self.net(x)

    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), Stack(), nn.Conv2d(8, 3, 1)).double(), torch.randn(2, 3, 4, 4).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [8, 12, 12]
    assert net.stacks[0].blocks == ("1.net.0", "1.net.1")
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    assert model[1].net[0].net[0].out_channels == 6


@pytest.mark.parametrize(("features", "groups"), [(lambda h: h.shape[-1], 1), (lambda h: 16, 0)])
def test_tensors_with_nothing_in_them(features, groups):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            h = self.first(self.before(x))
            none = h[:, h.shape[1] :].unflatten(1, (0, 1)).reshape(0, features(h))
            return self.last(torch.cat([h, none.view(2, 0, features(h))], 1))

    model, x = Halves().double(), torch.randn(2, 5, 6).double()
    net = morphogen.trace(model, x)
    assert len(net.groups) == 1 + groups
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)


def test_taps_of_a_layer_with_a_rule_of_its_own_stay():
    class Own(nn.Conv2d):
        pass

    @morphogen.layer_rule(Own)
    def own(call):
        call.role(call["weight"], Role("weight"))
        return (None, call["weight"].axes[0], None, None)

    try:
        model, x = (
            nn.Sequential(Own(1, 8, 3, padding="same", bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1)),
            torch.randn(2, 1, 6, 6),
        )
        net = morphogen.trace(model, x)
        assert [group.size for group in net.groups] == [8]
        morphogen.morph(net, net.subnetwork(width=0.5))
        assert model[0].weight.shape == (4, 1, 3, 3)
    finally:
        LAYERS.pop(Own)


def test_a_kernel_size_that_spans_follows():
    net = morphogen.trace(Sentences(), torch.randint(0, 30, (4, 7)))
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert [conv.kernel_size for conv in net.model.convs] == [(2, 8), (3, 8)]


class TwoLayers(nn.Module):
    def __init__(self, op, **layers):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 16), nn.Linear(6, 16), nn.LazyLinear(3)
        self.op, self.places = op, 4

    def forward(self, x):
        return self.last(self.op(self, self.a(x), self.b(x)))


OPS_OF_TWO = {
    "places of the code": lambda m, a, b: F.pad(a, (0, 4)).slice_scatter(b[..., : m.places], -1, 16, 16 + m.places)[
        ..., :16
    ],
    "indices of features": lambda m, a, b: a.index_fill(1, b.mean((0, 1)).abs().long().clamp(max=4), 0.0),
    "a vector solved for": lambda m, a, b: torch.linalg.solve(torch.eye(16, dtype=a.dtype) + a.mT @ a, b.mean(1)),
    "a batch of channels": lambda m, a, b: torch.linalg.solve(
        torch.eye(5, dtype=a.dtype)[None], (a + b).permute(2, 1, 0)
    ).permute(2, 1, 0),
}


@pytest.mark.parametrize("name", OPS_OF_TWO)
def test_what_narrows_runs(name):
    model, x = TwoLayers(OPS_OF_TWO[name]).double(), torch.randn(2, 5, 6).double()
    model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        net = morphogen.trace(model, x)
    if any(not group.inner for group in net.groups):
        assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)


def test_complex_parameters_narrow_and_grow():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(12, 3)
            self.weight = nn.Parameter(torch.randn(16, 12, dtype=torch.cdouble) / 4)
            self.gate = nn.Parameter(torch.ones(12, dtype=torch.cdouble))

        def forward(self, x):
            f = torch.fft.rfft(self.first(x), dim=1)
            f = torch.einsum("bki,io->bko", f, self.weight) * self.gate
            return self.last(torch.fft.irfft(f, n=x.shape[1], dim=1))

    model, x = Fourier().double(), torch.randn(2, 6, 6).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16, 12]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    for operator in ("quiet", "net2net"):
        morphogen.morph(net, net.subnetwork(width=0.5))
        assert_function_preserved(net, net.dense, x, operator)
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense, operator="random")
    model(x).sum().backward()
    assert all(p.isfinite().all() for p in model.parameters())


class Codebook(nn.Module):
    """Words that are averages of what they stood for, written through `data` (VQ-VAE-2, MONAI's VQVAE)."""

    def __init__(self, read=lambda x: x):
        super().__init__()
        self.words, self.read = nn.Embedding(8, 16), read
        self.words.weight.requires_grad = False
        self.register_buffer("average", self.words.weight.data.clone())

    def forward(self, x):
        nearest = torch.cdist(x, self.words.weight).argmin(-1)
        quantised = self.words(nearest)
        if self.training:
            chosen = F.one_hot(nearest.flatten(), 8).to(x)
            self.average.data.mul_(0.9).add_(chosen.mT @ self.read(x).flatten(0, 1).detach(), alpha=0.1)
            self.words.weight.data = self.average.clone()
        return x + (quantised - x).detach() + F.mse_loss(quantised.detach(), x)


class Whole(Codebook):
    """A model that keeps the words itself."""

    def __init__(self, read=lambda x: x):
        super().__init__(read)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(super().forward(self.first(x)))


def test_what_is_written_through_data_follows():
    model, x = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 16), Codebook(), nn.Linear(16, 3)), torch.randn(2, 5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model[0].out_features == 6 and model[2].average.shape == model[2].words.weight.shape == (8, 8)
    before = model[2].average.clone()
    model.train()(x).sum().backward()
    assert not torch.equal(model[2].average, before) and torch.equal(model[2].words.weight, model[2].average)


@pytest.mark.parametrize("whole", [False, True])
def test_a_module_whose_buffers_only_training_reads_stays_where_training_cannot_be_read(whole):
    def read(x):
        return x if x.mean() > 0 else -x

    model = (
        Whole(read) if whole else nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 16), Codebook(read), nn.Linear(16, 3))
    )
    x = torch.randn(2, 5, 6)
    with pytest.warns(UserWarning, match="only the evaluation mode was read"):
        net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.first.out_features == 16 if whole else model[0].out_features == 6
    assert (model if whole else model[2]).words.weight.shape == (8, 16)
    model.train()(x).sum().backward()


class Deformed(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.first, self.places = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 27 * groups, 3, padding=1)
        self.conv, self.last, self.groups = DeformConv2d(16, 16, 3, padding=1), nn.Conv2d(16, 3, 1), groups

    def forward(self, x):
        at, mask = self.places(x).split((18 * self.groups, 9 * self.groups), 1)
        return self.last(self.conv(self.first(x), at, mask.sigmoid()).relu())


class Unpooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x, places = F.max_pool2d(self.first(x), 2, return_indices=True)
        return self.last(F.max_unpool2d(x, places, 2))


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 9, 3)

    def forward(self, x):
        boxes = torch.tensor([[0.0, 1, 1, 5, 5], [1.0, 0, 2, 7, 6]], device=x.device, dtype=x.dtype)
        return self.last(roi_align(self.first(x), boxes, (3, 3)).flatten(1))


class Dynamic(nn.Module):
    """A depthwise kernel of each example's own, in a convolution with a group for each channel of each example."""

    def __init__(self):
        super().__init__()
        self.first, self.kernel, self.last = nn.Conv2d(3, 16, 1), nn.Linear(3, 16 * 9), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        kernel, x = self.kernel(x.mean((2, 3))), self.first(x)
        b, c, h, w = x.shape
        x = F.conv2d(x.reshape(1, b * c, h, w), kernel.view(b * c, 1, 3, 3), padding=1, groups=b * c)
        return self.last(x.view(b, c, h, w).relu())


class Words(nn.Module):
    """Pooled along the words alone (Funnel), as images of one channel."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(F.avg_pool2d(self.first(x).unsqueeze(1), (2, 1), (2, 1), ceil_mode=True).squeeze(1))


@pytest.mark.parametrize(
    "model, x, sizes",
    [
        (Deformed(), torch.randn(2, 3, 8, 8), [16, 16]),
        (Deformed(2), torch.randn(2, 3, 8, 8), [16]),
        (Unpooled(), torch.randn(2, 3, 8, 8), [16]),
        (Cut(), torch.randn(2, 3, 8, 8), [16]),
        (Words(), torch.randn(2, 5, 6), [16]),
        (Dynamic(), torch.randn(2, 3, 8, 8), [16]),
    ],
    ids=["deformable", "deformable in groups", "unpooled", "boxes", "words", "dynamic"],
)
def test_rules_of_space(model, x, sizes):
    model, x = model.double(), x.double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == sizes
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert_function_preserved(net, net.dense, x, "quiet")
