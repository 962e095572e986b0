"""Small nets of the kinds that other libraries have: what they keep, read and hook is not in the way of a morph."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen

from checks import assert_equals_masked_dense, randomise_statistics
from nets import image


class Net(nn.Module):
    """conv (16) - BN - `middle` - conv (4); `middle` and `setup` are what a row is about."""

    def __init__(self, middle, setup=lambda net: None):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        self.middle = middle
        setup(self)

    def forward(self, x, *others, **named):
        return self.second(self.middle(self, self.norm(self.first(x)).relu(), *others, **named))


def setting(**makers):
    return lambda net: [setattr(net, name, make()) for name, make in makers.items()]


def masks(net, x, valid, border):
    """Masks and positions, by ops that nothing with channels meets: DETR's, and those of causal attention."""
    ours = ((valid & border) | ~border) ^ valid.logical_xor(border)
    places = torch.arange(x.shape[-1], device=x.device)
    steps = F.pad(places.diff(), (1, 0)).bitwise_and(3).gcd(places)
    kept = torch.isin(places, torch.tensor([0, 2])).logical_not()
    return x * (ours[:, None] & (steps >= 0) & kept)


def pointwise(net, x):
    """Ops that no rule names: PyTorch says that they go position by position."""
    y = torch.special.erfcx(x).xlogy(x.abs() + 1).logaddexp(x).copysign(x)
    y = torch.fmax(y, x.sinc()).clip(-3, 3).absolute_() + torch.frexp(x).mantissa + x.cosh().arctan()
    return y.masked_fill(x.greater_equal(2).bitwise_xor(x < 1), 0.5).true_divide(2).subtract(x.ldexp(torch.tensor(1)))


def leaves(net, x):
    """State of the last call, as RAFT and DynUNet leave it: in a list, in an attribute, in an object's dictionary."""
    net.heads[0] = x
    net.last = {"features": (x * 2, [x.mean()])}
    net.width_now = x.mean((2, 3))
    return net.heads[0]


def captures(net, x):
    """transformers 5 reads hidden states by hooks which the first call puts there."""
    if not net.installed:
        net.norm.register_forward_hook(lambda module, args, output: net.captured.append(output))
        net.installed = True
        return x
    return x + net.captured.pop()


def reads(net, x):
    """YOLO: strides are a plain tensor, and numbers are read out of it."""
    full = torch.full(x.shape[-2:], net.stride[0])
    return x * full * net.stride[1].item() + x.new_full((), net.stride.sum())


def table(net, x):
    """SimpleViT: positions are a plain tensor, with channels."""
    return x + net.table.to(x.dtype)[:, None, None]


ROWS = {
    "masks": (lambda: Net(masks), lambda: (image(), torch.rand(2, 8, 8) < 0.5, torch.rand(2, 8, 8) < 0.5)),
    "pointwise": (lambda: Net(pointwise), lambda: (image(),)),
    "state of a call": (lambda: Net(leaves, setting(heads=lambda: [None])), lambda: (image(),)),
    "hooks it needs": (
        lambda: Net(captures, setting(installed=lambda: False, captured=list)),
        lambda: (image(),),
    ),
    "numbers read": (lambda: Net(reads, setting(stride=lambda: torch.tensor([8.0, 16.0, 32.0]))), lambda: (image(),)),
    "a plain table": (lambda: Net(table, setting(table=lambda: torch.randn(16))), lambda: (image(),)),
}


@pytest.mark.parametrize("row", ROWS)
def test_kinds_that_other_libraries_have(row):
    """Called before in training mode, with gradients; half and back, and the function is the masked dense one's."""
    make, example = ROWS[row]
    model, x = make(), example()
    model(*x).sum().backward()
    randomise_statistics(model)
    dense = {name: tensor.shape for name, tensor in model.state_dict().items()}
    net = morphogen.trace(model, x)
    assert [(group.name, group.size) for group in net.groups] == [("first", 16)] and not net.structure.unread
    model(*x).sum().backward()
    target = net.subnetwork(alive={"first": sorted(torch.randperm(16)[:8].tolist())})
    masked = morphogen.masked_dense(net, target).eval()
    model.eval()
    with torch.no_grad():
        expected = masked(*x)
        morphogen.morph(net, target)
        torch.testing.assert_close(model(*x), expected, rtol=1e-5, atol=1e-5)
    model.train()(*x).sum().backward()
    morphogen.morph(net, net.dense)
    model(*x).sum().backward()
    fresh = make()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == dense


class Blocks(nn.Module):
    """Tokens with a table of positions, and blocks which each keep a table of their own."""

    def __init__(self, depth=3):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.table = torch.randn(4, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.table
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scales = torch.linspace(0.5, 2, 32)
        self.last = None

    def forward(self, x):
        self.last = self.inner(x)
        return x + self.outer((self.last * self.scales).relu())


def test_plain_tensors_follow_as_buffers_do():
    """Same object, narrowed, and back with the values it had; in no state; in blocks that go out and come back too."""
    model, x = Blocks(), image()
    model(x).sum().backward()
    net = morphogen.trace(model, x)
    assert [stack.name for stack in net.stacks] == ["blocks"]
    table, whole = model.table, model.table.clone()
    assert "table[1]" in net.groups[0].members and "table" not in model.state_dict()
    target = net.subnetwork(width=0.5, blocks={"blocks": (0, 2)})
    morphogen.morph(net, target)
    assert model.table is table and torch.equal(table, whole[:, :8])
    assert model.blocks[2].scales.shape == (16,)
    model(x).sum().backward()
    morphogen.morph(net, net.dense)
    assert model.table is table and torch.equal(table, whole)
    assert all(torch.equal(block.scales, torch.linspace(0.5, 2, 32)) for block in model.blocks)
    model(x).sum().backward()


def test_blocks_with_other_plain_tables_are_not_interchangeable():
    model = Blocks()
    model.blocks[1].scales = torch.ones(32)
    net = morphogen.trace(model, image())
    assert not net.stacks
    assert "scales" in net.structure.fixed_blocks[0].reason


def test_a_plain_table_resumes():
    """It is in no state: a fresh model, brought to the size, has its part of the same table."""
    torch.manual_seed(0)
    model, x = Blocks(), image()
    net = morphogen.trace(model, x)
    target = net.subnetwork(width=0.5)
    morphogen.morph(net, target)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    torch.manual_seed(0)
    other = Blocks()
    morphogen.morph(morphogen.trace(other, x), target)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(model(x), other(x))


class Tables(nn.Module):
    """A mask in a buffer and strides in a plain tensor, of which the forward pass reads a part."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("mask", torch.ones(5, 5).tril())
        self.stride = torch.tensor([1.0, 2.0])

    def forward(self, x):
        x = self.first(x)
        weights = (x @ x.transpose(1, 2)) * self.mask * self.stride[0]
        return self.second(weights @ x)


def test_tables_that_no_parameter_follows_are_no_channels():
    net = morphogen.trace(Tables(), torch.randn(2, 5, 6))
    assert [group.name for group in net.groups] == ["first"]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), torch.randn(2, 5, 6), 1e-4)


def test_an_op_that_reads_channels_pins_these_alone():
    def middle(net, x):
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127) if net.hard else x

    model = nn.Sequential(Net(middle, setting(hard=lambda: True)), Net(middle, setting(hard=lambda: False)))
    model[1].first = nn.Conv2d(4, 16, 1)
    with pytest.warns(
        UserWarning, match=r"^0: no rule for the op aten.fake_quantize_per_tensor_affine.default.*0.first.weight\[0\]"
    ):
        net = morphogen.trace(model, image())
    assert [group.name for group in net.groups] == ["0.second", "1.first"]
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert [layer.out_channels for layer in (model[0].first, model[0].second, model[1].first)] == [16, 2, 8]
