"""The growth space of AutoProg: Omega, Lambda_k, and which blocks are alive at each depth."""

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import morphogen
from morphogen.dense.depth import inserted, interpolated, stacked
from morphogen.dense.subnet import contains, union
from morphogen.schedule.linear import linear_ratios
from morphogen.schedule.space import ListedSpace, growth_space

from nets import Tower

BOTH = ("depth", "resolution")


def described(candidates):
    """(blocks, side of the image) of each."""
    return [(sum(map(len, c.blocks.values())), c.resolution[0]) for c in candidates]


def space_of(name, ratio, exclude=()):
    net = morphogen.trace(timm.create_model(name), torch.zeros(2, 3, 224, 224), exclude=exclude)
    return net, growth_space(net, linear_ratios(ratio, 4), BOTH, interpolated)


def test_blocks_sit_between_those_that_are_always_alive_from_the_last_on():
    assert inserted(6, 6, 12, interpolated) == (0, 2, 4, 6, 8, 10)
    assert inserted(6, 8, 12, interpolated) == (0, 2, 4, 6, 8, 9, 10, 11)
    assert inserted(6, 10, 12, interpolated) == (0, 2, 4, 5, 6, 7, 8, 9, 10, 11)
    assert inserted(6, 12, 12, interpolated) == tuple(range(12))
    assert inserted(4, 6, 12, stacked) == (0, 1, 2, 3, 4, 5)


@given(st.integers(1, 24), st.data())
def test_a_longer_network_has_the_blocks_of_a_shorter_one(size, data):
    least = data.draw(st.integers(1, size))
    for table in (interpolated, stacked):
        before: set[int] = set()
        for length in range(least, size + 1):
            alive = inserted(least, length, size, table)
            assert len(alive) == length and before <= set(alive)
            before = set(alive)


@pytest.mark.nightly
def test_deit_s():
    _, space = space_of("deit_small_patch16_224", 0.5)
    depths, sides = (6, 8, 10, 12), (112, 144, 192, 224)  # 7, 9, 12 and 14 patches of 16
    assert described(space.candidates()) == [(d, s) for s in sides for d in depths]
    assert described(space.first()) == [(d, s) for s in (112, 192, 224) for d in (6, 10, 12)]
    smallest = space.first()[0]
    assert described(space.following(smallest)) == [(d, s) for s in (112, 144) for d in depths]
    middle = space.candidates()[6]
    assert described([middle]) == [(10, 144)]
    assert described(space.following(middle)) == [(d, s) for s in (144, 192) for d in (10, 12)]
    assert described(space.following(space.candidates()[-1])) == [(12, 224)]


@pytest.mark.nightly
def test_volo_d1():
    # The class-attention blocks behind the four stages are not among the paper's 18.
    net, space = space_of("volo_d1_224", 0.5, exclude=["post_network"])
    depths = [sum(map(len, blocks.values())) for blocks in space.depths]
    assert depths == [9, 12, 15, 18]
    by_stack = [[len(blocks[stack.name]) for stack in net.stacks] for blocks in space.depths]
    assert by_stack == [[2, 2, 4, 1], [3, 3, 5, 1], [3, 3, 7, 2], [4, 4, 8, 2]]
    assert [side for side, _ in space.resolutions] == [112, 144, 191, 224]  # 191 has the tokens of 192
    assert len(space.candidates()) == 16 and len(space.first()) == 9
    assert described(space.following(space.first()[0])) == [(d, s) for s in (112, 144) for d in depths]
    four = growth_space(net, linear_ratios(0.4, 4), BOTH, interpolated)
    assert [sum(map(len, blocks.values())) for blocks in four.depths] == [8, 10, 14, 18]
    assert [[len(blocks[stack.name]) for stack in net.stacks] for blocks in four.depths] == [
        [2, 2, 3, 1],
        [2, 2, 5, 1],
        [3, 3, 6, 2],
        [4, 4, 8, 2],
    ]
    assert [side for side, _ in four.resolutions] == [95, 128, 176, 224]
    assert len(four.first()) == 9 and len(four.following(four.first()[0])) == 8


@pytest.mark.nightly
def test_resnet_50_grows_in_each_stage():
    net, space = space_of("resnet50", 0.5)
    by_stack = [[len(blocks[stack.name]) for stack in net.stacks] for blocks in space.depths]
    assert [stack.size for stack in net.stacks] == [2, 3, 5, 2]  # the first block of a stage changes its width
    assert by_stack == [[1, 2, 3, 1], [2, 3, 4, 2], [2, 3, 5, 2]]  # two shares round to the same
    assert [side for side, _ in space.resolutions] == [112, 149, 187, 224]
    assert len(space.first()) == 9 and len(space.following(space.first()[0])) == 6


def test_width_is_a_dimension_too():
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    space = growth_space(net, linear_ratios(0.5, 4), ("width",), interpolated)
    assert [len(c.channels["conv1"]) for c in space.candidates()] == [6, 8, 10, 12]
    assert [len(c.channels["conv1"]) for c in space.first()] == [6, 10, 12]
    assert [len(c.channels["conv1"]) for c in space.following(space.first()[1])] == [10, 12]


@pytest.mark.parametrize("dimensions", [("depth",), ("resolution",), ("depth", "resolution", "width")])
def test_everything_nests_in_the_dense_network(dimensions):
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    space = growth_space(net, linear_ratios(0.4, 4), dimensions, interpolated)
    assert space.candidates()[-1] == net.dense
    for candidate in space.candidates():
        assert contains(net.dense, candidate)
        following = space.following(candidate)
        assert candidate == following[0] and all(contains(larger, candidate) for larger in following)
        assert union(following) == following[-1]


def test_a_list_of_ones_own():
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    small, deep = net.subnetwork(depth=0.5, resolution=4), net.subnetwork(resolution=4)
    large, whole = net.subnetwork(depth=0.5), net.dense
    space = ListedSpace((small, deep, large, whole))
    assert space.first() == [small, deep, large, whole]
    assert space.following(deep) == [deep, whole]
    assert union([deep, large]) == whole


def test_the_linear_schedule_in_the_space():
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    space = growth_space(net, linear_ratios(0.5, 4), BOTH, interpolated)
    assert described(space.at(k / 3) for k in range(4)) == [(2, 4), (3, 5), (3, 7), (4, 8)]  # as Prog's stages
