"""Sub-networks as plain data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import morphogen
from morphogen.schedule.linear import equal_starts, linear_ratios

from nets import Grouped, Plain, image

indices = st.sets(st.integers(0, 300), min_size=1).map(lambda s: tuple(sorted(s)))


@given(st.dictionaries(st.text(min_size=1), indices), st.none() | st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_json_round_trip(channels, resolution):
    subnetwork = morphogen.SubNetwork(channels, {"blocks": (0, 2)}, resolution)
    assert morphogen.SubNetwork.from_json(subnetwork.to_json()) == subnetwork
    assert hash(morphogen.SubNetwork.from_json(subnetwork.to_json())) == hash(subnetwork)


def test_ranges_are_readable():
    assert morphogen.SubNetwork({"a": (0, 1, 2, 5, 7, 8)}).to_dict()["channels"] == {"a": "0:3,5:6,7:9"}


def test_it_is_printed_with_ranges():
    subnetwork = morphogen.SubNetwork({"conv": tuple(range(512))}, {"blocks": (0, 2)}, (20, 20))
    shown = "SubNetwork(channels={'conv': '0:512'}, blocks={'blocks': '0:1,2:3'}, resolution=[20, 20])"
    assert repr(subnetwork) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"channels": {"a": "x"}, "blocks": {}, "resolution": null}',
        '{"channels": 1, "blocks": {}, "resolution": null}',
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(morphogen.SubNetworkError, match="not a sub-network"):
        morphogen.SubNetwork.from_json(text)


def test_widths_are_floored_and_multiples_rounded():
    net = morphogen.trace(Plain(), image())

    def count(subnetwork):
        return [len(units) for units in subnetwork.channels.values()]

    assert count(net.subnetwork(width=0.7)) == [5, 11]  # of 8 and 16
    assert count(net.subnetwork(width=0.01)) == [1, 1]
    assert count(net.subnetwork(width=0.7, multiple_of=4)) == [4 + 4 * (0.7 * 8 / 4 >= 1.5), 12]
    assert count(net.subnetwork(width=0.1, multiple_of=8)) == [8, 8]
    assert count(net.subnetwork(width={"conv1": 0.5})) == [4, 16]
    assert count(net.subnetwork(alive={"conv2": [15]})) == [8, 1]
    grouped = morphogen.trace(Grouped(), image())  # units of 2, 2 and 4 channels
    assert count(grouped.subnetwork(width=0.5, multiple_of=4)) == [2, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "0 < width <= 1"),
        ({"width": 1.5}, "found 1.5"),
        ({"width": {"conv9": 0.5}}, "conv9"),
        ({"alive": {"conv1": []}}, "at least one unit"),
        ({"alive": {"conv1": [0, 8]}}, "from 0 to 7"),
        ({"alive": {"conv1": [1, 1]}}, "each once"),
        ({"depth": 0.5}, "no block stacks"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"resolution": 0}, "1 pixel"),
    ],
)
def test_bad_subnetworks_are_refused(arguments, message):
    net = morphogen.trace(Plain(), image())
    with pytest.raises(morphogen.SubNetworkError, match=message):
        net.subnetwork(**arguments)


def test_equation_1_and_equal_stages():
    assert linear_ratios(0.5, 5) == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert linear_ratios(0.5, 3) == [0.5, 0.75, 1.0]
    assert linear_ratios(0.5, 1) == [1.0]
    assert equal_starts(240, 5) == [0, 48, 96, 144, 192]
    for epochs in range(1, 30):
        for stages in range(1, epochs + 1):
            starts = equal_starts(epochs, stages)
            # the stage of every epoch is floor(e n / T), as the paper writes it
            assert [sum(start <= e for start in starts) - 1 for e in range(epochs)] == [
                e * stages // epochs for e in range(epochs)
            ]
