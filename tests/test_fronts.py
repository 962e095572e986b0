"""Speed at equal accuracy: numbers worked by hand, bounds, and an interval that holds the truth as often as it says."""

import json
import math

import pytest
import torch

from morphogen.errors import ConfigError
from morphogen.report import fronts
from morphogen.report.fronts import Point, cost_at, front, isotonic, speedups_at_equal_accuracy
from morphogen.report.headline import headline_rows


def points(method, runs, seeds=1):
    """Runs of (budget, accuracy, seconds), FLOPs twice the seconds."""
    return [Point(method, b, seed, a, s, 2 * s) for b, a, s in runs for seed in range(seeds)]


DENSE = points("Dense", [(0.25, 80, 25), (0.5, 86, 50), (1, 90, 100)])


def at(found, below=0.0, cost="seconds"):
    return next(each for each in found if (each.below, each.cost) == (below, cost))


def test_means_that_fall_are_pooled_by_the_number_of_seeds():
    one = torch.ones(1, 4).double()
    values = torch.tensor([[1.0, 3.0, 2.0, 4.0]]).double()
    assert isotonic(values, one).tolist() == [[1, 2.5, 2.5, 4]]
    assert isotonic(values, torch.tensor([[1.0, 3.0, 1.0, 1.0]]).double()).tolist() == [[1, 2.75, 2.75, 4]]
    assert isotonic(torch.tensor([[4.0, 3.0, 2.0, 1.0]]).double(), one).tolist() == [[2.5] * 4]
    assert isotonic(torch.tensor([[5.0, 1.0, 1.0, 9.0], [1.0, 2.0, 3.0, 4.0]]).double(), one[[0, 0]]).tolist() == [
        pytest.approx([7 / 3] * 3 + [9]),
        [1, 2, 3, 4],
    ]


def test_a_front_is_read_off_in_the_logarithm_of_the_cost():
    costs, fitted = torch.tensor([[10.0, 40.0, 90.0]]).double(), torch.tensor([[70.0, 80.0, 80.0]]).double()

    def read(accuracy):
        low, high = cost_at(costs, fitted, torch.tensor([accuracy]).double())
        return low.item(), high.item()

    assert read(75.0) == (pytest.approx(20), pytest.approx(20))  # half way from 10 to 40
    assert read(80.0) == (pytest.approx(40), pytest.approx(40))  # where the plateau begins
    assert read(70.0) == (10, 10)
    assert read(69.9) == (0, 10) and read(80.1) == (90, math.inf)


def test_the_speedup_at_equal_accuracy_by_hand():
    # The method reaches 90 half way (in the logarithm) from 32 s to 50 s, at 40 s: dense takes 100 s.
    # 89 is three quarters of the way from 86 to 90 for dense: 50 x 2^(3/4); for the method a quarter from 88 to 92.
    found = speedups_at_equal_accuracy(DENSE + points("M", [(0.5, 88, 32), (1, 92, 50)]))
    assert [(each.method, each.below, each.cost) for each in found] == [
        ("M", 0, "seconds"),
        ("M", 0, "flops"),
        ("M", 1, "seconds"),
        ("M", 1, "flops"),
    ]
    assert at(found).value == pytest.approx(2.5) == at(found, cost="flops").value
    assert at(found).accuracy == 90 and at(found).interval is None and str(at(found)) == "2.50x"
    assert at(found, 1).value == pytest.approx(50 * 2**0.75 / (32 * (50 / 32) ** 0.25))
    json.dumps([each.to_dict() for each in found])


def test_a_dense_network_that_got_worse_with_time_is_taken_where_it_got_there_first():
    dense = points("Dense", [(0.5, 91, 50), (0.75, 89, 75), (1, 90, 100)])  # pooled: 90 from 50 s on
    found = at(speedups_at_equal_accuracy(dense + points("M", [(1, 90, 40)])))
    assert found.accuracy == pytest.approx(90) and found.value == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("runs", "below", "text", "low", "high"),
    [
        ([(0.5, 80, 30), (1, 89, 60)], 0, "not reached: < 1.67x", 0, 100 / 60),  # it takes more than 60 s
        ([(0.5, 91, 40), (1, 92, 60)], 0, "> 2.50x", 2.5, math.inf),  # its shortest run is better already
        ([(0.5, 70, 20), (1, 85, 40)], 20, "< 1.25x", 0, 1.25),  # dense takes 25 s at most, it 20 s
        ([(0.5, 75, 20), (1, 85, 40)], 20, "no bound", 0, math.inf),  # even the shortest runs of both are better
    ],
)
def test_what_cannot_be_read_off_is_a_bound(runs, below, text, low, high):
    found = at(speedups_at_equal_accuracy(DENSE + points("M", runs), below=(below,)), below)
    assert found.value is None and str(found) == text
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.reached == ("not reached" not in text)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_headline_is_a_row_a_method_and_accuracy():
    found = speedups_at_equal_accuracy(DENSE + points("M", [(0.5, 88, 32), (1, 92, 50)]), below=(0.0, 2.0))
    first, second = headline_rows(found, {"M": (1.9, 2.0)})
    assert first == {
        "method": "M",
        "at accuracy %": "90.00 (dense)",
        "speedup in time (95 %)": "2.50x",
        "in FLOPs (95 %)": "2.50x",
        "full length, by step times": "2.00x",
        "end to end": "1.90x",
    }
    assert second["at accuracy %"] == "88.00 (dense - 2)" and second["in FLOPs (95 %)"] == "2.21x"  # 50 sqrt(2) / 32
    assert headline_rows(found, {})[0].keys() == {*first} - {"full length, by step times", "end to end"}


def test_without_a_dense_run_of_full_length_there_is_nothing_to_equal():
    with pytest.raises(ConfigError, match="Dense: nothing to compare with; expected runs of budget 1"):
        speedups_at_equal_accuracy(points("Dense", [(0.5, 80, 50)]) + points("M", [(1, 80, 50)]))


def test_knots_have_their_spread():
    runs = [Point("M", 1, 0, 90, 10, 4), Point("M", 1, 1, 92, 14, 4), Point("M", 0.5, 0, 91.5, 6, 2)]
    short, full = front(runs, "M", "seconds")
    assert (short.budget, short.cost, short.seeds, short.spread) == (0.5, 6, 1, None)
    assert (full.cost, full.accuracy, full.seeds, full.spread) == (12, 91, 2, pytest.approx(2**0.5))
    assert short.fitted == full.fitted == pytest.approx((91.5 + 2 * 91) / 3)  # one seed against two


def simulated(generator, seeds):
    """Accuracy grows by 4 points when the cost doubles; the method has 1 point more at 0.6 of the cost."""

    def noise(scale):
        return scale * float(torch.randn((), generator=generator))

    return [
        Point(method, b, seed, 90 + 4 * math.log2(b) + bonus + noise(0.3), b * share * (1 + noise(0.02)), b * share)
        for method, bonus, share in (("Dense", 0, 1.0), ("M", 1, 0.6))
        for b in (0.3, 0.5, 0.75, 1.0)
        for seed in range(seeds)
    ]


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(fronts, "REPLICATES", 1000)
    generator, truth = torch.Generator().manual_seed(1), 2**0.25 / 0.6
    experiments = [speedups_at_equal_accuracy(simulated(generator, 5), below=(0.0,)) for _ in range(80)]
    held = [low <= truth <= high for low, high in (at(each).interval for each in experiments)]
    assert 0.92 <= sum(held) / len(held) < 1  # 98 % of 300, 97 % one point below
    width = [high - low for low, high in (at(each).interval for each in experiments)]
    assert 0.2 < sum(width) / len(width) < 0.5  # and does not do so by being wide


def test_the_interval_is_the_same_every_time_and_wants_three_seeds():
    runs = simulated(torch.Generator().manual_seed(0), 3)
    once, again = (at(speedups_at_equal_accuracy(runs)).interval for _ in range(2))
    assert once == again and once[0] < at(speedups_at_equal_accuracy(runs)).value < once[1]
    fewer = [run for run in runs if run.seed < 2]
    assert at(speedups_at_equal_accuracy(fewer)).interval is None


def test_an_interval_that_is_not_bounded_says_so():
    # Equal fronts: in half of the replicates the method does not get as far as dense.
    dense = [Point("Dense", 1, seed, 90 + seed % 3, 100, 1) for seed in range(6)]
    found = at(speedups_at_equal_accuracy(dense + [Point("M", 1, p.seed, p.accuracy, 50, 1) for p in dense]))
    assert found.value == 2 and found.interval == (0, math.inf) and str(found) == "2.00x (no bound)"
