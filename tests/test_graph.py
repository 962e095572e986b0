"""The graph: errors that name the op and the way out, and the algebra of views."""

from collections import OrderedDict
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import morphogen
from morphogen.dense.fake import tensor_named
from morphogen.graph.axes import reshape
from morphogen.graph.counting import Counting
from morphogen.graph.numbers import Attribute, Dim, Equal, Number
from morphogen.graph.slots import Slots
from morphogen.graph.units import solve

from checks import assert_equals_masked_dense
from nets import Plain, image


class Unknown(nn.Module):
    """Uses an op without a rule in a named module."""

    class Odd(nn.Module):
        def forward(self, x):
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.odd = self.Odd()
        self.last = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.last(self.odd(self.conv(x))).mean((2, 3)))


def test_an_unknown_op_names_itself_the_module_and_the_way_out():
    named = r"^odd: no rule for the op aten.fake_quant.*: conv.weight\[0\] and 1 more.*rule\(.fake_quant"
    for exclude in ((), ("odd",)):
        with pytest.warns(UserWarning, match=named) if not exclude else nullcontext():
            net = morphogen.trace(Unknown(), image(), exclude=exclude)
        assert [group.name for group in net.groups] == ["last"]
        morphogen.morph(net, net.subnetwork(width=0.5, resolution=4))
        assert net.model.last.out_channels == 4 and net.model.conv.out_channels == 8


@pytest.mark.filterwarnings("ignore:odd. no rule:UserWarning")
def test_where_an_unknown_op_keeps_all_channels_a_width_names_it():
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 1), odd=Unknown.Odd(), last=nn.Conv2d(8, 8, 1)))
    net = morphogen.trace(model, image())
    with pytest.raises(
        morphogen.SubNetworkError, match=r"odd: .*no rule for the op aten.fake_quantize_per_tensor_affine.*exclude="
    ):
        net.subnetwork(width=0.5)
    morphogen.morph(net, net.subnetwork(resolution=4))  # nothing but width needs the rule


class Surrounded(nn.Module):
    """An op without a rule in one branch of a residual block, reading half of a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.before = nn.Conv2d(8, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 4, 1)
        self.back = nn.Conv2d(12, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.before(x)
        y = torch.cat([torch.fake_quantize_per_tensor_affine(self.left(y).relu(), 0.1, 0, -128, 127), self.right(y)], 1)
        return self.outer(self.inner((x + self.norm(self.back(y))).mean((2, 3))).relu())


@pytest.mark.parametrize("make", [Unknown, Surrounded])
def test_groups_that_an_unknown_op_does_not_read_change_all_the_same(make):
    """Poison: what goes is NaN before, so that whatever of it were still read would be seen."""
    model = make()
    net = morphogen.trace(model, image())
    groups = {group.name: group.size for group in net.groups}
    assert groups == ({"last": 8} if make is Unknown else {"stem": 8, "before": 6, "right": 4, "inner": 16})
    for _ in range(4):
        alive = {name: torch.randperm(size)[: size // 2].tolist() for name, size in groups.items()}
        target = net.subnetwork(alive=alive)
        expected = morphogen.masked_dense(net, target).eval()
        kept = net.structure.alive_mask(target)
        with torch.no_grad():
            for name, layout in net.structure.tensors.items():
                for dim, axis in enumerate(layout.axes):
                    if axis is not None:
                        gone = (~kept[axis]).nonzero().flatten()
                        tensor_named(model, name).index_fill_(dim, gone, float("nan"))
            morphogen.morph(net, target)
            x = image()
            assert model.eval()(x).isfinite().all()
            torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-6)
        morphogen.morph(net, net.dense)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_models_that_cannot_be_exported_are_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(morphogen.TraceError, match=r"torch\.export cannot read"):
        morphogen.trace(Branches(), image())
    with pytest.raises(morphogen.TraceError, match=r"found inputs of shape \(2, 4, 8, 8\)"):
        morphogen.trace(Plain(), torch.randn(2, 4, 8, 8))


def test_tracing_leaves_the_model_untouched():
    model = Plain()
    model.train()
    model.bn1.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = image()
    random = torch.random.get_rng_state()
    morphogen.trace(model, x)
    assert torch.equal(random, torch.random.get_rng_state())
    modes = [module.training for module in model.modules()]
    assert modes == [True, True, False, True, True]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Sliced(nn.Module):
    """Runs parts of its lists, in a model in which a module has two names."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"layers": nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))})
        self.body["blocks"] = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(5))
        self.last = nn.Conv2d(8, 4, 1)
        self.before = self.after = nn.Identity()

    def forward(self, x):
        layers, blocks = self.body["layers"], self.body["blocks"]
        x = layers[1:](layers[:1](self.before(x)))
        for block in blocks[1:][:-1][::2]:
            x = block(x)
        return self.after(self.last(x))


def test_modules_out_of_slices_have_their_own_paths():
    model = Sliced()
    net = morphogen.trace(model, image(), exclude=["body.blocks.3"])
    paths = [call.path for call in net.structure.paths[0].calls if call.op == "conv2d"]
    assert paths == ["body.layers.0", "body.layers.2", "body.blocks.1", "body.blocks.3", "last"]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())
    assert model.body["layers"][0].out_channels == model.body["layers"][2].out_channels == 4
    assert model.body["blocks"][1].out_channels == model.body["blocks"][3].in_channels == 8


class Given(nn.Module):
    """A bias computed from a table of two coordinates (Swin V2), normalised or with a learned one added."""

    def __init__(self, through=None, plain=False):
        super().__init__()
        self.stem, self.out, self.through = nn.Linear(6, 8), nn.Linear(8, 3), through or nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))
        if plain:
            self.table = torch.randn(5, 2)
        else:
            self.register_buffer("table", torch.randn(5, 2), persistent=False)

    def forward(self, x):
        return self.out(self.stem(x) + self.mlp(self.through(self.table)))


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.randn(5, 2))

    def forward(self, x):
        return x + self.more


@pytest.mark.parametrize(
    "model, expected",
    [
        (Given, 2),
        (lambda: Given(plain=True), 2),
        (lambda: Given(nn.LayerNorm(2)), 2),
        (lambda: Given(nn.BatchNorm1d(2)), 2),
        (lambda: Given(nn.Linear(2, 2)), 1),
        (lambda: Given(Learned()), 1),
    ],
    ids=["buffer", "plain", "layer norm", "batch norm", "linear", "learned"],
)
def test_what_a_buffer_alone_gives_is_as_fixed_as_the_input(model, expected):
    model, x = model(), torch.randn(2, 5, 6)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.mlp[0].weight.shape == (8, expected) and model(x).shape == (2, 5, 3)
    pinned = {axis.axis: axis.reason for axis in net.pinned}
    assert ("such as the model's input" in pinned.get("mlp.0.weight[1]", "")) == (expected == 2)


def factors(slots, axis):
    """For each slot, the units it hangs on."""
    units = solve(slots)
    return [tuple(u for u in row if u) for row in units.factors[units.of[axis]].tolist()]


def test_views_merge_and_split():
    slots = Slots()
    channels = slots.fresh(4)
    (_, flat), _ = reshape(slots, (2, 4, 3, 3), (None, channels, None, None), (2, 36))
    assert flat.tolist() == channels.repeat_interleave(9).tolist()
    back, _ = reshape(slots, (2, 36), (None, flat), (2, 4, 9))
    assert back[1].tolist() == channels.tolist() and back[2] is None
    assert len(set(factors(slots, channels))) == 4  # nothing was tied on the way


def test_a_view_makes_channels_products():
    slots = Slots()
    channels = slots.fresh(6)
    (_, heads, places), _ = reshape(slots, (1, 6), (None, channels), (1, 2, 3))
    (h,), (p,) = zip(*factors(slots, heads), strict=True), zip(*factors(slots, places), strict=True)
    assert factors(slots, channels) == [(a, b) for a in h for b in p]
    # Swapped and flattened: the same products in another order.
    (_, flat), _ = reshape(slots, (1, 3, 2), (None, places, heads), (1, 6))
    assert factors(slots, flat) == [(a, b) for b in p for a in h]
    # With the heads whole, the places alone decide; the same places of every head go together.
    slots.fix(heads, "")
    assert factors(slots, channels) == 2 * factors(slots, places) and len(set(factors(slots, places))) == 3


def test_two_views_of_one_axis_agree_or_fix():
    slots = Slots()
    channels = slots.fresh(12)
    (_, a, b), _ = reshape(slots, (1, 12), (None, channels), (1, 3, 4))
    (_, c, d), _ = reshape(slots, (1, 12), (None, channels), (1, 3, 4))
    assert factors(slots, a) == factors(slots, c) and factors(slots, b) == factors(slots, d)
    assert len(set(factors(slots, channels))) == 12
    reshape(slots, (1, 12), (None, channels), (1, 6, 2))
    assert set(factors(slots, channels)) == {()}


def test_views_take_the_finest_factors():
    slots = Slots()
    channels = slots.fresh(12)
    axes, (segment,) = reshape(slots, (2, 12), (None, channels), (6, 4))  # (2 x 3, 4)
    assert [[factor.size for factor in factors] for factors in segment.factors] == [[2, 3], [4]]
    assert len(set(factors(slots, axes[0]))) == 3 and axes[0].tolist() == axes[0][:3].repeat(2).tolist()
    axes, _ = reshape(slots, (4, 9), (None, slots.fresh(9)), (6, 6))
    assert axes == (None, None)  # 4 and 6 have no common refinement: nothing of it can change


def test_a_product_of_products_has_the_factors_of_both():
    slots = Slots()
    channels = slots.fresh(12)
    (_, a, b), _ = reshape(slots, (1, 12), (None, channels), (1, 2, 6))
    (_, c, d), _ = reshape(slots, (1, 6), (None, b), (1, 2, 3))
    each = [factors(slots, axis) for axis in (a, c, d)]
    whole = [tuple(sorted(x + y + z)) for x in each[0] for y in each[1] for z in each[2]]
    assert factors(slots, channels) == whole


def test_axes_of_one_size_are_tied_unless_they_are_the_same_units():
    slots = Slots()
    one, other = slots.fresh(4), slots.fresh(4)
    slots.match(one, other.flip(0), "")
    assert factors(slots, one) == factors(slots, other.flip(0))
    slots = Slots()
    one = slots.fresh(4)
    slots.match(one, one.flip(0), "")
    assert len(set(factors(slots, one))) == 4


def test_a_share_in_one_graph_says_nothing_of_another():
    """Calls are numbered anew when the training mode is read: the same number may stand for another tensor."""
    slots = Slots()
    counting = Counting(slots)
    heads = Number(2, Attribute("", "heads"), [])
    for size in (6, 8):
        axis = slots.fresh(size)
        counting.begin(lambda dim, axis=axis: axis, Equal())
        width = Number(size, Dim((0, 0), 1), [])
        _, (segment,) = reshape(slots, (1, size), (None, axis), (1, 2, size // 2))
        counting.segment(segment, [None, heads, width // heads])
        assert len(set(factors(slots, axis))) == size and all(len(f) == 2 for f in factors(slots, axis))


def test_ties_are_transitive_and_fixing_spreads():
    slots = Slots()
    a, b, c = slots.fresh(3), slots.fresh(3), slots.fresh(3)
    slots.tie(a, b, "")
    slots.tie(c, b, "")
    slots.fix(c[1:2], "because")
    solved = solve(slots)
    units, reasons = solved.of, solved.reasons
    assert units[a].tolist() == units[c].tolist() == [1, 2, 3]
    assert reasons[2] == "because" and 1 not in reasons


def test_a_rule_is_entered_under_any_way_of_writing_its_op():
    table = morphogen.graph.rules.table.RULES
    before = dict(table)
    try:
        for name in ("mine::op", "mine.op.default", "mine.op_"):
            morphogen.rule(name)(len)
            assert table.pop("mine.op") is len
        morphogen.rule("aten.special_mine.default")(len)
        assert table.pop("special_mine") is len
        assert table == before
    finally:
        table.clear()
        table |= before
    for wrong in (lambda: morphogen.rule(len), morphogen.rule, morphogen.layer_rule, lambda: morphogen.layer_rule("a")):
        with pytest.raises(morphogen.ConfigError, match=r"expected @morphogen\.(layer_)?rule\("):
            wrong()
    with pytest.raises(morphogen.ConfigError, match=r"no such role.*weight, bias"):
        morphogen.Role("gain")


def test_axes_of_different_lengths_are_not_tied():
    slots = Slots()
    with pytest.raises(ValueError, match="4 and 3"):
        slots.tie(slots.fresh(4), slots.fresh(3), "")


def test_a_rule_that_trips_names_the_layer_and_its_arguments():
    class Odd(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 8), Odd(8, 8), nn.Linear(8, 2))

    def trips(call):
        return call["input"].axes[0].chunk(2)

    def misspelt(call):
        call.keeps(in_feature=call["weight"].axes[1])
        return call["input"].axes

    try:
        for mistake, message in (
            (trips, "AttributeError.*arguments are input, weight, bias"),
            (misspelt, "in_feature$"),
        ):
            morphogen.layer_rule(Odd)(mistake)
            with pytest.raises(morphogen.TraceError, match=rf"^1: .*{message}"):
                morphogen.trace(model, torch.randn(2, 4))
    finally:
        del morphogen.graph.rules.table.LAYERS[Odd]
