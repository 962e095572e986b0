"""What cannot grow in depth is refused, and nothing has changed."""

import pytest
import torch

import morphogen

from checks import (
    assert_unchanged,
    snapshot,
    take_steps,
)
from nets import Stacked, Tower, image, numbered


def refused(net, target, optimizer, match, **settings):
    before, current, outside = snapshot(net.model, optimizer), net.current, dict(net.outside)
    modules = dict(net.model.named_modules())
    with pytest.raises(match[0], match=match[1]):
        morphogen.morph(net, target, optimizer=optimizer, **settings)
    assert_unchanged(net, before, current, optimizer)
    assert net.outside == outside and dict(net.model.named_modules()) == modules


def wrong_shape(entry):
    value = entry.copy(entry.below)
    return value[:1] if entry.name == "blocks.3.norm.bias" else value


def wrong_dtype(entry):
    return entry.copy(entry.below).double()


def nothing(entry):
    return None


def raising(entry):
    if entry.name == "blocks.3.norm.bias":
        raise ZeroDivisionError("on purpose")
    return entry.copy(entry.below).fill_(7)


def spoiling(entry):
    """Writes into the copies it is given, which are its own."""
    for unit in entry.before:
        entry.copy(unit).fill_(7)
    return wrong_shape(entry)


@pytest.mark.parametrize(
    "operator, match",
    [
        (wrong_shape, (morphogen.MorphError, r"blocks\.3\.norm\.bias.*unfit value.*\(12,\).*\(1,\)")),
        (wrong_dtype, (morphogen.MorphError, r"unfit value.*float32.*float64")),
        (nothing, (morphogen.MorphError, r"unfit value.*None")),
        (raising, (ZeroDivisionError, "on purpose")),
        (spoiling, (morphogen.MorphError, "unfit value")),
        ("magic", (morphogen.MorphError, r"no depth operator 'magic'.*interpolate.*stack")),
        ("momentum", (morphogen.MorphError, r"'momentum' needs a momentum network.*momentum=")),
        ("mogrow", (morphogen.MorphError, r"'mogrow' needs a momentum network")),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""),
)
def test_a_failing_depth_operator_changes_nothing(operator, match):
    model = Tower(4)
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
    take_steps(model, optimizer, image())
    refused(net, net.dense, optimizer, match, depth_operator=operator)
    morphogen.morph(net, net.dense, optimizer=optimizer)


def foreign(kind, model):
    return {"another architecture": lambda: Stacked(2), "another size": lambda: Tower(4)}[kind]()


FOREIGN = pytest.mark.parametrize("kind", ["another architecture", "another size"])


@FOREIGN
@pytest.mark.parametrize("grows", [True, False], ids=["growing", "shrinking"])
@pytest.mark.parametrize("role", ["momentum", "ema"])
def test_a_foreign_average_is_refused(role, grows, kind):
    """`another size`: the momentum network, or EMA copy, was left out of an earlier morph."""
    model = Tower(4)
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    steps = [net.subnetwork(depth=0.5), net.dense] if grows else [net.subnetwork(depth=0.75), net.subnetwork(depth=0.5)]
    morphogen.morph(net, steps[0], optimizer=optimizer)
    average = {role: foreign(kind, model)}
    operator = "mogrow" if role == "momentum" else "interpolate"
    match = (morphogen.MorphError, "current sub-network")
    refused(net, steps[1], optimizer, match, depth_operator=operator, **average)


def test_bad_positions_are_refused():
    net = numbered(4)
    for bad in ([], [4], [-1, 0], [0, 0], ["a"]):
        with pytest.raises(morphogen.SubNetworkError, match="blocks"):
            net.subnetwork(blocks={"blocks": bad})
    with pytest.raises(morphogen.SubNetworkError, match="no such"):
        net.subnetwork(blocks={"layers": [0]})
    with pytest.raises(morphogen.SubNetworkError, match="out of range"):
        net.subnetwork(depth=0.0)
    with pytest.raises(morphogen.SubNetworkError, match="no block"):
        net.subnetwork(depth=0.1)
    assert net.subnetwork(depth=1.0) == net.dense
