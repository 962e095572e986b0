"""Block stacks of all kinds, and what else is tied to blocks: hooks, modes, checkpoints, taps, what is handed on."""

import pytest
import timm
import torch
from torch import nn

import morphogen
from morphogen.dense.bypass import Bypass

from nets import Numbered, Stacked, Tower, deit, image, small


def test_hooks_survive_leaving_and_entering():
    model = deit()
    block, fired = model.blocks[3], []
    block.register_forward_hook(lambda *_: fired.append("forward"))
    block.mlp.fc1.weight.register_hook(lambda _: fired.append("gradient"))
    net = morphogen.trace(model, image(size=16))
    morphogen.morph(net, net.subnetwork(depth=0.5))
    model(image(size=16)).sum().backward()
    assert not fired and isinstance(model.blocks[3], Bypass) and net.outside["blocks.3"] is block
    morphogen.morph(net, net.dense)
    assert model.blocks[3] is block
    model(image(size=16)).sum().backward()
    assert fired == ["forward", "gradient"]


def test_a_block_comes_back_in_the_mode_of_the_model():
    model = Tower(4)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(depth=0.5))
    model.eval()
    morphogen.morph(net, net.dense)
    assert not any(module.training for module in model.modules())


def test_grad_checkpointing_of_timm():
    x = image(size=16)
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = deit()
        model.set_grad_checkpointing(enabled)
        net = morphogen.trace(model, x)
        morphogen.morph(net, net.subnetwork(depth=0.5))
        model.train()(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_feature_taps_by_index_mean_the_same_dense_block():
    model = deit().eval()
    x = image(size=16)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(depth=0.5))  # blocks 0, 2, 4
    outputs = {}
    for i in (2, 4):
        model.blocks[i].register_forward_hook(lambda _, __, result, i=i: outputs.update({i: result}))
    with torch.no_grad():
        taps = model.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True, output_fmt="NLC")
    for tap, block in zip(taps, (2, 2, 4), strict=True):  # block 3 is out and hands on what block 2 returned
        assert torch.equal(tap, outputs[block][:, 1:])


def test_class_attention_hands_on_the_class_token():
    model, side = small("cait_xxs24_224", img_size=16)
    x = image(size=side)
    net = morphogen.trace(model.eval(), x)
    assert {s.name: s.hands_on[0].passes for s in net.stacks} == {"blocks": (0,), "blocks_token_only": (1,)}
    morphogen.morph(net, net.subnetwork(blocks={"blocks_token_only": [0]}))
    with torch.no_grad():
        tokens = model.patch_embed(x) + model.pos_embed
        for block in model.blocks:
            tokens = block(tokens)
        cls = model.blocks_token_only[0](tokens, model.cls_token.expand(2, -1, -1))
        expected = model.forward_head(model.norm(torch.cat((cls, tokens), 1)))
        assert torch.equal(model(x), expected)


class TwoStreams(nn.Module):
    """Takes and returns two tensors in a dictionary and a tuple, the second one first."""

    def __init__(self, _):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, state, *, extra):
        return {"pair": (extra + self.b(state), state + self.a(extra))}


class Returning(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(map(TwoStreams, range(depth)))

    def forward(self, x):
        extra = torch.ones_like(x)
        for block in self.blocks:
            extra, x = block(x, extra=extra)["pair"]
        return x - extra


def test_blocks_with_several_values():
    model = Returning(4)
    x = torch.randn(3, 2)
    net = morphogen.trace(model, x)
    assert [(s.name, s.size, s.hands_on[0].passes) for s in net.stacks] == [("blocks", 4, (1, 0))]
    morphogen.morph(net, net.subnetwork(depth=0.5))
    first = model.blocks[0](x, extra=torch.ones_like(x))["pair"]
    second = model.blocks[2](first[1], extra=first[0])["pair"]
    assert torch.equal(model(x), second[1] - second[0])


class Chain(nn.Module):
    """Blocks that are plain attributes."""

    def __init__(self):
        super().__init__()
        self.block1, self.block2, self.block3 = (Numbered(i) for i in (1, 2, 3))

    def forward(self, x):
        return self.block3(self.block2(self.block1(x)))


def test_a_chain_of_attributes_is_a_stack():
    model = Chain()
    net = morphogen.trace(model, torch.randn(4, 2))
    (stack,) = net.stacks
    assert stack.units == (("block1",), ("block2",), ("block3",)) and stack.name == "block1..block3"
    order = list(model.state_dict())
    morphogen.morph(net, net.subnetwork(depth=1 / 3))
    assert list(model.state_dict()) == [name for name in order if name.startswith("block1.")]
    morphogen.morph(net, net.dense)
    assert list(model.state_dict()) == order
    assert [round(getattr(model, f"block{i}").read.weight.mean().item()) for i in (1, 2, 3)] == [1, 1, 1]


def test_shared_blocks_are_no_stack():
    tied = Stacked(4)
    tied.blocks = nn.ModuleList([tied.blocks[0]] * 4)
    assert not morphogen.trace(tied, torch.randn(2, 3)).stacks
    shared_weight = Stacked(4)
    for block in shared_weight.blocks[1:]:
        block.write.weight = shared_weight.blocks[0].write.weight
    assert not morphogen.trace(shared_weight, torch.randn(2, 3)).stacks
    twice = Stacked(4)
    twice.blocks.append(twice.blocks[1])  # block 1 runs again at the end
    stacks = morphogen.trace(twice, torch.randn(2, 3)).stacks
    assert [stack.blocks for stack in stacks] == [("blocks.2", "blocks.3")]


def test_a_shallow_vit_computes_what_a_shallow_vit_computes():
    model = deit()
    x = image(size=16)
    net = morphogen.trace(model.eval(), x)
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [1, 2, 5]}))
    native = deit(depth=3).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = {"1": "0", "2": "1", "5": "2"}[parts[1]]
        state[".".join(parts)] = tensor
    native.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model(x), native(x))


@pytest.mark.parametrize(
    ("name", "settings", "stacks"),
    [
        (
            "beit_base_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2},
            {"blocks": 4},
        ),
        ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 24, "depth": 4, "num_heads": 2}, {"blocks": 4}),
        pytest.param("regnety_002", {}, {"s3.b2..b4": 3, "s4.b2..b7": 6}, marks=pytest.mark.nightly),
        pytest.param(
            "mobilenetv2_100",
            {},
            {"blocks.2.1..2": 2, "blocks.3.1..3": 3, "blocks.4.1..2": 2, "blocks.5.1..2": 2},
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_stacks_of_other_families(name, settings, stacks):
    model = timm.create_model(name, num_classes=3, **settings)
    side = settings.get("img_size", 32)
    net = morphogen.trace(model, image(size=side))
    assert {stack.name: stack.size for stack in net.stacks} == stacks
    morphogen.morph(net, net.subnetwork(depth=0.5, resolution=side // 2 if side == 32 else None))
    morphogen.morph(net, net.dense)
    timm.create_model(name, num_classes=3, **settings).load_state_dict(model.state_dict())
