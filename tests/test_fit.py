"""The model of the candidates' losses: by hand, and how often it picks the right one under noise."""

import math
import random

import pytest

from morphogen.dense.subnet import SubNetwork
from morphogen.search.fit import fit_losses
from morphogen.search.score import choose


def of(blocks, side, channels=4):
    return SubNetwork({"a": tuple(range(channels))}, {"b": tuple(range(blocks))}, (side, side))


NINE = [of(blocks, side) for side in (112, 192, 224) for blocks in (6, 10, 12)]
"""The candidates of DeiT-S's first search."""


def test_losses_of_the_model_itself_stay_as_they_are():
    losses = [3 * len(c.blocks["b"]) ** -0.2 * c.resolution[0] ** -0.1 for c in NINE]
    fit = fit_losses(NINE, losses)
    assert fit.losses == pytest.approx(losses)
    assert max(map(max, fit.errors)) == pytest.approx(0, abs=1e-7)


def test_a_square_by_hand():
    """Blocks 1 and e, 1 and e tokens (in logarithms 0 and 1): log losses 0, 0, 0 and 4.

    The plane through them is -1 + 2 x + 2 y: -1, 1, 1, 3, each 1 off. One degree of freedom: the variance is 4. The hat
    matrix has 3/4 on its diagonal, 1/4 between neighbours and -1/4 between opposites; so the variance of the difference
    is 4 (3/2 - 1/2) = 4 between neighbours, and 4 (3/2 + 1/2) = 8 between opposites.
    """
    square = [of(1, 1), of(10, 1), of(1, 10), of(10, 10)]
    fit = fit_losses(square, [1.0, 1.0, 1.0, math.exp(4)])
    assert [math.log(loss) for loss in fit.losses] == pytest.approx([-1, 1, 1, 3])
    near, far = 2.0, math.sqrt(8)
    assert fit.errors[0] == pytest.approx([0, near, near, far], abs=1e-6)
    assert fit.errors[1] == pytest.approx([near, 0, far, near], abs=1e-6)


def test_dimensions_that_do_not_vary_explain_nothing():
    """Three depths: a line. Log losses 0, 0, 3 at 0, 1, 2 are on the line -0.5 + 1.5 x."""
    fit = fit_losses([of(1, 8), of(2, 8), of(4, 8)], [1.0, 1.0, math.exp(3)])
    assert [math.log(loss) for loss in fit.losses] == pytest.approx([-0.5, 1, 2.5])


def test_width_is_explained_where_it_varies():
    cube = [of(b, s, c) for b in (1, 2) for s in (1, 2) for c in (1, 2)]
    losses = [len(x.blocks["b"]) ** -1.0 * x.resolution[0] ** -2.0 * len(x.channels["a"]) ** -0.5 for x in cube]
    assert fit_losses(cube, losses).losses == pytest.approx(losses)


@pytest.mark.parametrize("few", [[of(1, 1)], [of(1, 1), of(2, 2)], [of(1, 1), of(2, 1), of(1, 2)]])
def test_no_more_candidates_than_parameters_are_left_alone(few):
    assert fit_losses(few, [1.0, 2.0, 3.0][: len(few)]) is None


def test_sizes_that_change_together_are_one_parameter():
    """Uniform growth of depth and resolution: four candidates, a line."""
    assert fit_losses([of(n, n) for n in (1, 2, 4, 8)], [8.0, 4.0, 2.0, 1.0]).losses == pytest.approx([8, 4, 2, 1])


def seconds_of(candidate):
    """As an attention network's: linear in the blocks, a little worse than linear in the tokens."""
    tokens = (candidate.resolution[0] / 16) ** 2
    return 20 + len(candidate.blocks["b"]) * tokens * (1 + tokens / 500)


TRUTHS = {
    "deeper is better": lambda blocks, tokens: 6 * blocks**-0.1 * tokens**-0.02,
    "more tokens are better": lambda blocks, tokens: 6 * blocks**-0.03 * tokens**-0.1,
    "little to choose": lambda blocks, tokens: 6 * blocks**-0.02 * tokens**-0.02,
    "not of the model": lambda blocks, tokens: 3 + 6 / blocks + 3 / tokens**0.5,
}


@pytest.mark.parametrize("noise", [0.01, 0.02])
@pytest.mark.parametrize("truth", TRUTHS)
def test_under_noise_the_model_picks_the_right_candidate_more_often(truth, noise):
    """300 searches whose nine losses are off by 1 or 2 %: the model is right at least 1.1 times as often."""
    losses = [TRUTHS[truth](len(c.blocks["b"]), (c.resolution[0] / 16) ** 2) for c in NINE]
    times, generator = [seconds_of(c) for c in NINE], random.Random(0)
    best, right = choose(losses, times)[2], {"fitted": 0, "literal": 0}
    for _ in range(300):
        seen = [loss * math.exp(generator.gauss(0, noise)) for loss in losses]
        right["literal"] += choose(seen, times)[2] == best
        right["fitted"] += choose(fit_losses(NINE, seen).losses, times)[2] == best
    assert right["fitted"] >= 1.1 * right["literal"] and right["fitted"] > 100, right
