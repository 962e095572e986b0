"""The elastic supernet: any part of a network runs in place, on its own weights."""

import copy

import pytest
import timm
import torch
from torch import nn

import morphogen
from morphogen.dense.depth import interpolated
from morphogen.dense.subnet import contains
from morphogen.morph.tensors import map_tensors
from morphogen.schedule.linear import linear_ratios
from morphogen.schedule.space import growth_space

from checks import assert_unchanged, perturb, snapshot
from nets import Tower


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=16, depth=6, num_heads=2, num_classes=5
    )


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(2, 4), num_heads=(2, 2), window_size=4
    )


def resnet():
    return timm.create_model("resnet26", num_classes=5, base_width=16, layers=(3, 4, 2, 2))


NETS = {
    "vit": (vit, 32, ("depth", "resolution"), 4),
    "swin": (swin, 64, ("depth", "resolution"), 2),
    "resnet": (resnet, 32, ("depth", "resolution"), 4),
    "tower": (Tower, 8, ("depth", "resolution", "width"), 3),
}
"""How each is made, its images' size, and the growth space: its dimensions, and how many ratios each has."""


def each(*at_night):
    """Every network, these with `pytest -m nightly`."""
    return [pytest.param(name, marks=pytest.mark.nightly if name in at_night else []) for name in NETS]


def network_of(name):
    """A perturbed network in double precision, images, and its growth space."""
    make, side, dimensions, ratios = NETS[name]
    model = make().double()
    perturb(model)
    images = torch.randn(4, 3, side, side, dtype=torch.double)
    net = morphogen.trace(model, images)
    return net, images, growth_space(net, linear_ratios(0.5, ratios), dimensions, interpolated)


def at(images, candidate):
    return nn.functional.interpolate(images, candidate.resolution, mode="bilinear", antialias=True)


def seen(model, images):
    """Output in evaluation mode; in training mode output, gradients and running statistics."""
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = [model.eval()(images)]
    model.zero_grad()
    outputs.append(model.train()(images))
    outputs[1].square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [output.detach() for output in outputs], grads, {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("name", each("resnet", "swin"))
def test_whole_supernet_equals_the_plain_network(name):
    net, images, space = network_of(name)
    model = net.model.eval()
    with torch.no_grad():
        plain = model(images)
        before = snapshot(model)
        supernet = morphogen.ElasticSupernet(net, space.first())
        assert torch.equal(model(images), plain)
        supernet.run_as(0)
        assert not torch.allclose(model(at(images, space.first()[0])), plain)
        supernet.run_as(None)
        assert torch.equal(model(images), plain)
        supernet.run_as(1)
        supernet.close()
        assert torch.equal(model(images), plain)
    assert_unchanged(net, before, net.dense)
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert not any("forward" in module.__dict__ for module in model.modules())


def check_candidates(name, start):
    """Outputs, gradients and running statistics of every candidate."""
    net, images, space = network_of(name)
    candidates = space.candidates()
    if start == "grown":
        morphogen.morph(net, candidates[len(candidates) // 2])
        candidates = [c for c in candidates if contains(net.current, c)]
    current, state = net.current, copy.deepcopy(net.model.state_dict())
    supernet = morphogen.ElasticSupernet(net, candidates)
    inside = []
    for number, candidate in enumerate(candidates):
        supernet.run_as(number)
        inside.append(seen(net.model, at(images, candidate)))
        supernet.run_as(None)
        net.model.load_state_dict(state)
    supernet.close()
    for candidate, (outputs, grads, buffers) in zip(candidates, inside, strict=True):
        maps = map_tensors(net, current, candidate)
        morphogen.morph(net, candidate)
        alone, small, statistics = seen(net.model, at(images, candidate))
        for mine, theirs in zip(outputs, alone, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        assert grads.keys() == small.keys()  # exactly the blocks that ran have learned
        for key, grad in grads.items():
            if key not in maps:
                torch.testing.assert_close(grad, small[key], rtol=1e-6, atol=1e-8)
            else:
                whole = torch.zeros_like(grad, requires_grad=True)
                maps[key].regrid(maps[key].survivors_of_old(whole)).backward(small[key])
                torch.testing.assert_close(grad, whole.grad, rtol=1e-6, atol=1e-8)
        for key, value in statistics.items():
            mine = buffers[key]
            if "running" in key:
                mine = maps[key].survivors_of_old(mine) if key in maps else mine
                torch.testing.assert_close(mine, value, rtol=1e-6, atol=1e-8)
        net.model.zero_grad()
        morphogen.morph(net, current)
        net.model.load_state_dict(state)


@pytest.mark.parametrize("name", each("resnet", "swin"))
def test_a_candidate_inside_equals_the_extracted_sub_network(name):
    check_candidates(name, "dense")


@pytest.mark.parametrize("name", each("resnet", "swin"))
def test_a_candidate_inside_a_grown_network_equals_the_extracted_sub_network(name):
    check_candidates(name, "grown")


def test_drop_path_is_laid_out_over_the_candidate():
    net, _, space = network_of("tower")
    supernet = morphogen.ElasticSupernet(net, space.candidates())
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in net.model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    two = next(i for i, c in enumerate(supernet.candidates) if len(c.blocks["blocks"]) == 2)
    supernet.run_as(two)
    alive = supernet.candidates[two].blocks["blocks"]
    assert [getattr(net.model.blocks[i].drop_path, "drop_prob", 0.0) for i in alive] == pytest.approx([0, 0.3])
    net.drop_path_scale = 0.5
    supernet.run_as(None)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in net.model.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15])


def test_another_entry_than_forward():
    net, images, space = network_of("vit")
    supernet = morphogen.ElasticSupernet(net, space.candidates())
    supernet.run_as(0)
    small = at(images, space.candidates()[0])
    with torch.no_grad():
        with pytest.raises((AssertionError, RuntimeError)):
            net.model.forward_features(small)
        with supernet.swapped():
            features = net.model.forward_features(small)
        assert torch.equal(net.model.forward_head(features), net.model(small))


def test_a_swap_inside_a_swap_lasts_as_long_as_the_outer_one():
    """A narrower candidate, called twice in one `swapped`, as a loss may do: running statistics move twice."""
    net, images, space = network_of("tower")
    supernet = morphogen.ElasticSupernet(net, space.candidates())
    supernet.run_as(0)
    model, small = net.model.train(), at(images, space.candidates()[0])
    state, weight = copy.deepcopy(model.state_dict()), model.conv1.weight
    for _ in range(2):
        model(small)
    twice = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    with supernet.swapped():
        model(small)
        assert model.conv1.weight.shape[0] == 6
        model(small)
        assert model.conv1.weight.shape[0] == 6
    assert model.conv1.weight is weight
    assert all(torch.equal(value, twice[key]) for key, value in model.state_dict().items())


def test_a_forward_pass_that_fails_leaves_the_whole_network():
    net, images, space = network_of("vit")
    before = net.model.pos_embed
    supernet = morphogen.ElasticSupernet(net, space.candidates())
    supernet.run_as(0)
    with pytest.raises(Exception, match=r"height|size"):
        net.model(images)
    assert net.model.pos_embed is before
    net.model(at(images, space.candidates()[0]))


@pytest.mark.nightly
def test_compiles_once_for_each_candidate():
    torch._dynamo.reset()
    net, images, space = network_of("vit")
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net.model, backend=backend)
    candidates = space.first()
    supernet = morphogen.ElasticSupernet(net, candidates)
    net.model.train()
    for _ in range(3):
        for number, candidate in enumerate(candidates):
            supernet.run_as(number)
            small = at(images, candidate)
            torch.testing.assert_close(compiled(small), net.model(small))
    assert len(graphs) == len(candidates) == 9
    supernet.close()
