"""Settings that cannot work: one error with a useful text, before training starts, nothing changed."""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn

import morphogen
from morphogen import methods
from morphogen.methods import build_method
from morphogen.parts import Average, Prune, Search

from checks import assert_same, assert_unchanged, snapshot, take_steps
from nets import Plain, Stacked, Tower, image, small

AT_ONCE = {
    "an unknown depth operator": (lambda: morphogen.Prog(depth_operator="magic"), r"no depth operator 'magic'.*mogrow"),
    "an unknown depth operator of NetworkExpansion": (
        lambda: morphogen.NetworkExpansion(depth=0.5, depth_operator="magic"),
        r"no depth operator 'magic'",
    ),
    "an unknown depth operator of ProgStack": (
        lambda: morphogen.ProgStack(depth_operator="magic"),
        r"no depth operator 'magic'",
    ),
    "no depth": (
        lambda: morphogen.NetworkExpansion(depth=0),
        r"NetworkExpansion: depth out of range.*0 < depth",
    ),
    "Net2Net of width 0": (lambda: morphogen.Net2Net(width=0), r"Net2Net: width out of range; .*0 < width <= 1"),
    "Net2Net with negative noise": (lambda: morphogen.Net2Net(noise=-0.1), r"Net2Net: noise out of range.*found -0\.1"),
    "Net2Net with noise nan": (lambda: morphogen.Net2Net(noise=float("nan")), r"Net2Net: noise out of range"),
    "Net2Net by another operator": (lambda: build_method("Net2Net(operator='fpi')"), r"has no setting 'operator'"),
    "Bert2BERT of no stages": (
        lambda: morphogen.Bert2BERT(stages=0),
        r"Bert2BERT: .*stages .*at least 1.*found stages 0",
    ),
    "Bert2BERT by magic": (lambda: morphogen.Bert2BERT(operator="magic"), r"no growth operator 'magic'.*net2net"),
    "Bert2BERT of depth 2": (lambda: morphogen.Bert2BERT(depth=2), r"Bert2BERT: depth out of range"),
    "depth above 1": (lambda: morphogen.NetworkExpansion(depth=6), r"depth out of range; .* found 6"),
    "ratio 0": (lambda: morphogen.Prog(ratio=0), r"Prog: out of range; expected 0 < ratio <= 1"),
    "no stages": (lambda: morphogen.Prog(stages=0), r"at least 1 stage"),
    "two shares": (lambda: morphogen.Prog(adaptive=(0.5, 0.5)), r"adaptive.*three shares"),
    "decay 1": (lambda: morphogen.Prog(decay=1.0), r"decay < 1.*1\.0"),
    "horizon 0": (lambda: morphogen.Momentum(horizon=0.0), r"horizon"),
    "one method combined": (lambda: morphogen.Combined((morphogen.Prog(),)), r"two methods or more, found 1"),
    "nothing combined": (morphogen.Combined, r"two methods or more, found 0"),
    "a plus and nothing": (lambda: build_method("Prog + "), r"no method ''"),
    "a plus before nothing": (lambda: build_method("+ Prog"), r"no method ''"),
    "nothing": (lambda: build_method(""), r"no method ''"),
    "a misspelling": (lambda: build_method("Prgo"), r"no method 'Prgo'.*Prog"),
    "AutoProg of one stage": (lambda: morphogen.AutoProg(stages=1), r"AutoProg: .*at least 2 stages.*found .*stages 1"),
    "AutoProg of ratio 0": (lambda: morphogen.AutoProg(ratio=0), r"AutoProg: .*0 < ratio <= 1.*found ratio 0"),
    "AutoProg without a search": (lambda: morphogen.AutoProg(search_epochs=0), r"AutoProg: .*1 epoch of search"),
    "AutoProg on no images": (lambda: morphogen.AutoProg(subset=0), r"AutoProg: subset .*1 or more, found 0"),
    "a space of words": (
        lambda: morphogen.AutoProg(stages=2, space=("small", "large")),  # pyright: ignore
        r"AutoProg: space is of the wrong type; expected a tuple of SubNetwork, found \('small'",
    ),
    "an unknown dimension": (
        lambda: morphogen.AutoProg(dimensions=("depth", "colour")),
        r"AutoProg: no such dimension; expected some of depth, resolution, width, found .*colour",
    ),
    "no dimension": (lambda: morphogen.AutoProg(dimensions=()), r"AutoProg: no such dimension"),
    "a dimension that is a text": (
        lambda: morphogen.Supernet(dimensions="depth"),
        r"Supernet: .* a tuple of str, found 'depth'",
    ),
    "AutoProg with two shares": (lambda: morphogen.AutoProg(adaptive=(0.5, 0.5)), r"AutoProg: adaptive.*three shares"),
    "AutoProg scored by magic": (
        lambda: morphogen.AutoProg(scoring="magic"),
        r"AutoProg: no such scoring; expected fitted or literal, found 'magic'",
    ),
    "AutoProg by magic": (lambda: morphogen.AutoProg(depth_operator="magic"), r"no depth operator 'magic'"),
    "Supernet of ratio 2": (lambda: morphogen.Supernet(ratio=2), r"Supernet: ratio out of range.*found 2"),
    "Retrain without a file": (lambda: build_method("Retrain(file='none.json')"), r"none.json: not a growth schedule"),
    "a penalty ratio of 0": (lambda: morphogen.PruneTrain(ratio=0.0), r"penalty ratio.*0 < ratio < 1, found 0\.0"),
    "a penalty ratio of 1": (lambda: morphogen.SSL(ratio=1.0), r"penalty ratio.*0 < ratio < 1, found 1\.0"),
    "a penalty ratio in percent": (lambda: build_method("OneTime(ratio=25)"), r"penalty ratio.*found 25"),
    "a penalty ratio of nan": (lambda: morphogen.PruneTrain(ratio=float("nan")), r"penalty ratio.*found nan"),
    "an interval of 0": (lambda: morphogen.PruneTrain(interval=0), r"PruneTrain: interval.*at least 1, found 0"),
    "half an interval": (lambda: morphogen.PruneTrain(interval=2.5), r"interval.*found 2\.5"),  # pyright: ignore
    "a penalty from the end on": (lambda: morphogen.PruneTrain(start=1.0), r"PruneTrain: start.*0 <= start < 1"),
    "a target of all": (
        lambda: morphogen.PruneTrain(target=1.0),
        r"the target is out of range.*0 < target < 1.*found 1\.0",
    ),
    "nothing but the last part": (
        lambda: morphogen.PruneTrain(finetune=1.0),
        r"PruneTrain: finetune.*0 <= finetune < 1",
    ),
    "a threshold of 0": (lambda: morphogen.PruneTrain(threshold=0.0), r"threshold above 0.*found threshold 0\.0"),
    "multiples of 0": (lambda: morphogen.PruneTrain(multiple_of=0), r"from 1, found .*multiple_of 0"),
    "OneTime at the end": (lambda: morphogen.OneTime(at=1.0), r"OneTime: at out of range.*found 1\.0"),
    "a start of OneTime": (lambda: build_method("OneTime(start=0.6)"), r"OneTime has no setting 'start'"),
    "an interval of OneTime": (lambda: build_method("OneTime(interval=3)"), r"OneTime has no setting 'interval'"),
    "SSL in no order": (lambda: morphogen.SSL(trained=0.9), r"SSL: shares.*0 < trained < sparse < 1, found 0\.9 and"),
    "a start of SSL": (lambda: build_method("SSL(start=0.5)"), r"SSL has no setting 'start'"),
    "GrowThenPrune from nothing": (lambda: morphogen.GrowThenPrune(width=0.0), r"GrowThenPrune: .*0 < width <= 1"),
    "GrowThenPrune by magic": (lambda: morphogen.GrowThenPrune(operator="magic"), r"no growth operator 'magic'"),
    "an unknown setting": (lambda: build_method("Prog(depth=0.5)"), r"Prog has no setting 'depth'.*ratio, stages"),
    "a text for a number": (lambda: build_method("Prog(ratio='half')"), r"bad value for 'ratio'.*a number"),
    "an operator with a text for a number": (
        lambda: morphogen.NetworkExpansion(operator="net2net(noise='a')"),
        r"net2net: bad value for 'noise'; expected a number, found 'a'",
    ),
    "a number beyond all numbers": (
        lambda: build_method(f"PruneTrain(threshold={10**400})"),
        r"PruneTrain: bad value for 'threshold'; expected a number, found 10{400}$",
    ),
    "noise beyond all numbers": (lambda: morphogen.Net2Net(noise=float("inf")), r"Net2Net: noise out of range"),
    "dimensions in a list": (
        lambda: build_method("AutoProg(dimensions=(['depth'],))"),
        r"AutoProg: dimensions .* a tuple of str, found \(\['depth'\],\)",
    ),
    "no call": (lambda: build_method("Prog(0.5)"), r"NAME\(key=value, \.\.\.\)"),
    "AutoProg and another method": (
        lambda: morphogen.Combined((morphogen.AutoProg(stages=2), morphogen.NetworkExpansion(stages=2))),
        r"AutoProg \+ NetworkExpansion: .*cannot be combined.*Retrain",
    ),
    "AutoProg and pruning": (
        lambda: morphogen.Combined((morphogen.PruneTrain(), morphogen.AutoProg(stages=2))),
        r"AutoProg \+ PruneTrain: .*cannot be combined",
    ),
    "Supernet and another method": (
        lambda: morphogen.Combined((morphogen.Supernet(), morphogen.Prog(stages=2))),
        r"Prog \+ Supernet: .*cannot be combined",
    ),
    "two methods that prune": (
        lambda: morphogen.Combined((morphogen.PruneTrain(), morphogen.OneTime())),
        r"OneTime \+ PruneTrain: only one of several methods can prune; expected one",
    ),
    "two ways to fill new channels": (
        lambda: build_method("NetworkExpansion(operator='random') + Net2Net"),
        r"Net2Net \+ NetworkExpansion: the methods fill new channels in different ways.*net2net.* and random",
    ),
    "two ways to fill new blocks": (
        lambda: build_method("Prog + ProgStack"),
        r"Prog \+ ProgStack: the methods fill new blocks in different ways; .*found mogrow and stack\. Give both",
    ),
}


def test_none_is_a_setting_that_is_not_given():
    assert build_method("PruneTrain(interval=None)") == morphogen.PruneTrain()
    assert build_method("NetworkExpansion(depth=0.5, decay=None)") == morphogen.NetworkExpansion(depth=0.5)
    with pytest.raises(morphogen.ConfigError, match="bad value for 'ratio'; expected a number, found None"):
        build_method("PruneTrain(ratio=None)")


@pytest.mark.parametrize("what", AT_ONCE)
def test_refused_when_it_is_made(what):
    make, text = AT_ONCE[what]
    with pytest.raises(morphogen.MorphogenError, match=text) as error:
        make()
    assert "\n" not in str(error.value)


def vit():
    return small("deit_tiny_patch16_224", img_size=16)[0]


def no_channels():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))


def probe(model=None):
    call = (lambda x: x) if model is None else model
    return morphogen.Probe(lambda x, y: call(x).square().mean(), [(image(), None)])


def parts_of(model, **shares):
    net = morphogen.trace(model, image())
    return (net.subnetwork(**shares), net.dense)


SEARCH = {"steps_per_epoch": 9, "probe": probe()}

WHEN_ATTACHED = {
    "nothing to search": (
        Tower,
        morphogen.AutoProg(ratio=1),
        SEARCH | {"epochs": 12},
        r"AutoProg: .*nothing to search.*full network alone.*found ratio 1",
    ),
    "nothing to search in a space of one's own": (
        Tower,
        lambda: morphogen.AutoProg(space=parts_of(Tower(), depth=1.0)),
        SEARCH | {"epochs": 12},
        r"AutoProg: .*nothing to search",
    ),
    "a search longer than its stage": (
        Tower,
        morphogen.AutoProg(stages=4, search_epochs=3),
        SEARCH,
        r"AutoProg: a search longer than its stage.*at least 3 epochs, found 8 epochs in 4 stages, the shortest of 2",
    ),
    "a search longer than the run, thrown away": (
        Tower,
        morphogen.AutoProg(stages=4, search_epochs=5, recycle=False),
        SEARCH,
        r"AutoProg: a search longer than its stage.*at least 5 epochs",
    ),
    "more stages of AutoProg than epochs": (
        Tower,
        morphogen.AutoProg(stages=9, search_epochs=1),
        SEARCH,
        r"AutoProg: more stages than epochs.*found 8 epochs in 9 stages",
    ),
    "a search of too few steps": (
        Tower,
        morphogen.AutoProg(stages=2),
        SEARCH | {"steps_per_epoch": 4},
        r"a search needs a step of every candidate; expected at least 9 steps, found 8, in 2 epochs",
    ),
    "a search without a probe": (
        Tower,
        morphogen.AutoProg(stages=2),
        {"steps_per_epoch": 9},
        r"AutoProg: .*nothing to compare them with; expected attach\(\.\.\., probe=",
    ),
    "an interval longer than the run": (
        Tower,
        morphogen.PruneTrain(interval=9),
        {},
        r"PruneTrain: the reconfiguration interval is longer than the run; expected at most 8 epochs, which have the "
        r"penalty, found 9",
    ),
    "an interval longer than what is left": (
        Tower,
        morphogen.GrowThenPrune(start=0.5, interval=5),
        {},
        r"GrowThenPrune: the reconfiguration interval.*at most 4 epochs, which have the penalty, found 5",
    ),
    "OneTime in one epoch": (Tower, morphogen.OneTime(), {"epochs": 1}, r"never be reconfigured.*an epoch after 0"),
    "SSL in one epoch": (Tower, morphogen.SSL(), {"epochs": 1}, r"SSL: .*at least an epoch"),
    "GrowThenPrune without growth": (Tower, morphogen.GrowThenPrune(start=0.0), {}, r"GrowThenPrune: a stage needs"),
    "nothing to prune": (
        lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 10, 8), torch.nn.Flatten()),
        morphogen.PruneTrain(),
        {},
        r"nothing of this model can be pruned; expected a convolution.*inspect",
    ),
    "nothing to prune but what is excluded": (
        Plain,
        morphogen.PruneTrain(),
        {"exclude": ["conv2"]},
        r"nothing of this model can be pruned",
    ),
    "AutoProg without a stack": (Plain, morphogen.AutoProg(stages=2), SEARCH, r"the depth of this model cannot change"),
    "AutoProg without images": (
        lambda: Stacked(4),
        morphogen.AutoProg(stages=2, dimensions=("resolution",)),
        SEARCH | {"example": torch.zeros(2, 3)},
        r"the resolution of this model cannot change",
    ),
    "a growth space of width without channels": (
        no_channels,
        morphogen.AutoProg(stages=2, dimensions=("width",)),
        SEARCH,
        r"the width of this model cannot change",
    ),
    "a space of another model": (
        Tower,
        lambda: morphogen.AutoProg(stages=2, space=parts_of(Tower(6), depth=0.5)),
        SEARCH,
        r"blocks: bad block positions.*from 0 to 3",
    ),
    "a space of another kind of model": (
        Tower,
        lambda: morphogen.AutoProg(stages=2, space=parts_of(Plain(), width=0.5)),
        SEARCH,
        r"conv2: no such channel group or block stack|a stack must keep",
    ),
    "a ratio that leaves no block": (
        Tower,
        morphogen.Prog(ratio=0.1),
        {},
        r"Prog: .*leaves no block.*found 0\.1",
    ),
    "a depth that leaves no block": (
        Tower,
        morphogen.NetworkExpansion(depth=0.1, stages=2),
        {},
        r"NetworkExpansion: .*leaves no block",
    ),
    "more stages than epochs": (
        Tower,
        morphogen.Prog(stages=5),
        {"epochs": 4},
        r"Prog: a stage needs",
    ),
    "stages that do not fit into memory": (
        Tower,
        morphogen.NetworkExpansion(stages=10**9),
        {},
        r"stages out of range; expected at most 10000, found 1000000000",
    ),
    "stages before pruning that do not fit into memory": (
        Tower,
        morphogen.GrowThenPrune(stages=10**9),
        {},
        r"stages out of range; expected at most 10000",
    ),
    "StackBERT in one epoch": (Tower, morphogen.StackBERT(), {"epochs": 1}, r"StackBERT: a stage needs"),
    "ProgStack in two epochs": (Tower, morphogen.ProgStack(), {"epochs": 2}, r"ProgStack: a stage needs"),
    "ProgStack on six blocks": (
        lambda: Tower(6),
        morphogen.ProgStack(),
        {},
        r"ProgStack, blocks: .*1/4.*a multiple of 4 blocks, found 6.*Prog",
    ),
    "StackBERT on five blocks": (lambda: Tower(5), morphogen.StackBERT(), {}, r"StackBERT, blocks: .*multiple of 2"),
    "Prog without a stack": (Plain, morphogen.Prog(), {}, r"Prog: this model has no block stack.*inspect"),
    "StackBERT without a stack": (Plain, morphogen.StackBERT(), {}, r"StackBERT: this model has no block stack"),
    "ProgStack without a stack": (Plain, morphogen.ProgStack(), {}, r"ProgStack: this model has no block stack"),
    "depth without a stack": (
        Plain,
        morphogen.NetworkExpansion(depth=0.5, stages=2),
        {},
        r"NetworkExpansion: this model has no block stack",
    ),
    "a resolution below one patch": (
        vit,
        morphogen.ProgressiveResizing(ratio=0.1, stages=2),
        {},
        r"ProgressiveResizing: 2 pixels: the resolution is below the least",
    ),
    "width without channels": (no_channels, morphogen.NetworkExpansion(width=0.5, stages=2), {}, r"no channels"),
    "no epochs": (Tower, morphogen.Prog(), {"epochs": 0}, r"epochs out of range"),
    "no images": (
        lambda: Stacked(4),
        morphogen.ProgressiveResizing(),
        {"example": torch.zeros(2, 3)},
        r"ProgressiveResizing: resolution cannot change.*images",
    ),
}


@pytest.mark.parametrize("what", WHEN_ATTACHED)
def test_refused_when_it_is_attached_and_nothing_changes(what):
    make, method, settings, text = WHEN_ATTACHED[what]
    method = method if isinstance(method, morphogen.Method) else method()
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    settings = {"example": image(size=16 if make is vit else 8), "epochs": 8, "steps_per_epoch": 2} | settings
    take_steps(model, optimizer, settings["example"], steps=1)
    before, modules = snapshot(model, optimizer), dict(model.named_modules())
    with pytest.raises(morphogen.MorphogenError, match=text) as error:
        morphogen.attach(model, optimizer, method, **settings)
    assert "\n" not in str(error.value)
    assert_same(before, model, optimizer)
    assert dict(model.named_modules()) == modules
    hooks = [found for each in (model, optimizer) for name, found in vars(each).items() if name.endswith("_hooks")]
    assert hooks and not any(hooks)
    morphogen.attach(model, optimizer, morphogen.Dense(), **settings | {"epochs": 8})  # it is free


def test_a_morph_with_a_momentum_operator_and_no_momentum_network():
    model = Tower()
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    half = net.subnetwork(depth=0.5)
    morphogen.morph(net, half, optimizer=optimizer, depth_operator="momentum")  # nothing enters: nothing is needed
    before = snapshot(model, optimizer)
    with pytest.raises(morphogen.MorphError, match="'momentum' needs a momentum network; expected momentum="):
        morphogen.morph(net, net.dense, optimizer=optimizer, depth_operator="momentum")
    assert_unchanged(net, before, half, optimizer)


def test_an_epoch_before_the_first_is_refused():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = morphogen.attach(model, optimizer, morphogen.StackBERT(), example=image(), epochs=4)
    with pytest.raises(morphogen.ConfigError, match="counted from 0"):
        run.begin_epoch(-1)


def test_an_error_in_the_first_epoch_leaves_the_model_free():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for start_epoch in (-1, 3):
        with pytest.raises(morphogen.ConfigError, match=r"counted from 0|joined in the middle of a search"):
            method = morphogen.AutoProg(stages=2)
            morphogen.attach(model, optimizer, method, example=image(), epochs=8, start_epoch=start_epoch, **SEARCH)
    morphogen.attach(model, optimizer, morphogen.Dense(), example=image(), epochs=4)


def test_a_decay_needs_no_steps():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = morphogen.attach(model, optimizer, morphogen.Prog(decay=0.998), example=image(), epochs=4, start_epoch=0)
    momentum = run.part(Average).network
    assert momentum is not None and momentum.decay == 0.998
    take_steps(model, optimizer, image())
    assert momentum.decay == 0.998


@pytest.mark.parametrize("hooks", [True, False])
def test_steps_that_are_not_told_are_counted(hooks):
    """A stage of two epochs, a horizon of a tenth: of the steps so far in the first, of all in the second."""
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    run = morphogen.attach(model, optimizer, morphogen.Prog(), example=image(), epochs=8, hooks=hooks)
    decays = []
    for epoch in range(3):
        run.begin_epoch(epoch)
        for _ in range(15):
            take_steps(model, optimizer, image() if hooks else run.begin_step(image()), steps=1)
            if not hooks:
                run.end_step()
            decays.append(run.part(Average).network.decay)
    assert decays[:15] == pytest.approx([1 - 1 / max(1, (1 + i) / 10) for i in range(15)])
    assert decays[15:] == pytest.approx([1 - 1 / 3] * 30)


def test_a_search_whose_steps_are_not_told_counts_them():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    settings = SEARCH | {"steps_per_epoch": None, "probe": probe(model)}
    run = morphogen.attach(model, optimizer, morphogen.AutoProg(stages=2), example=image(), epochs=8, **settings)
    for epoch, steps in ((0, 5), (1, 4)):
        run.begin_epoch(epoch)
        take_steps(model, optimizer, image(), steps=steps)
    run.begin_epoch(2)
    assert len(run.part(Search).searches) == 1
    run.end(grow=True)
    run = morphogen.attach(model, optimizer, morphogen.AutoProg(stages=2), example=image(), epochs=8, **settings)
    for epoch in (0, 1):
        run.begin_epoch(epoch)
        take_steps(model, optimizer, image(), steps=4)
    with pytest.raises(morphogen.ConfigError, match=r"a step of every candidate; .*found steps of 8 candidates"):
        run.begin_epoch(2)


def pruning(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return morphogen.attach(model, optimizer, morphogen.PruneTrain(**settings), example=image(), epochs=4)


BEFORE_A_COEFFICIENT = {
    "nan": (float("nan"), r"coefficient cannot be set on this batch.*not zero, found loss nan, sum"),
    "infinite": (float("inf"), r"found loss inf"),
    "zero": (0.0, r"found loss 0, sum"),
    "negative": (-1.0, r"found loss -1, sum"),
}


@pytest.mark.parametrize("what", BEFORE_A_COEFFICIENT)
def test_a_first_loss_that_sets_no_coefficient(what):
    value, text = BEFORE_A_COEFFICIENT[what]
    run = pruning(Tower())
    with pytest.raises(morphogen.TrainingError, match=text) as error:
        run.penalised(torch.tensor(value))
    assert "\n" not in str(error.value)
    assert run.part(Prune).pruner.coefficient is None
    assert run.penalised(torch.tensor(3.0)).item() == pytest.approx(4.0)


def test_weights_of_zero_set_no_coefficient():
    model = Tower()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(morphogen.TrainingError, match=r"found loss 1, sum of the channels' norms 0"):
        pruning(model).penalised(torch.tensor(1.0))


@pytest.mark.parametrize("proximal", [False, True])
def test_a_loss_that_holds_the_penalty_already(proximal):
    model = Tower()
    run = pruning(model, proximal=proximal)
    lasso = morphogen.GroupLasso(run.network)
    task = model(image()).square().mean()
    losses = [task + 0.01 * lasso(), (0.5 * lasso() + task) / 4, 0.1 * lasso()]
    if not proximal:
        losses += [run.penalised(task), run.penalised(task) / 2 + 1]
    for loss in losses:
        with pytest.raises(morphogen.ConfigError, match=r"holds the group lasso penalty already.*once.*GroupLasso"):
            run.penalised(loss)
    run.penalised(task)


def test_methods_add_up_as_they_are_written():
    one, other, third = morphogen.Prog(stages=2), morphogen.NetworkExpansion(width=0.5), morphogen.DynamicBatch()
    text = "Prog(stages=2) + NetworkExpansion(width=0.5) + DynamicBatch"
    assert one + other + third == build_method(text) == morphogen.Combined((one, other, third))
    assert third + (other + one) == one + other + third  # in whatever order


WRONG = ("x", None, -1, float("nan"), [1], {}, object(), True, 1.5, [[1]], "", float("inf"))
SETTINGS = [
    (kind, setting.name) for kind in methods.METHODS.values() for setting in dataclasses.fields(kind) if setting.init
]


@pytest.mark.parametrize(("kind", "setting"), SETTINGS)
def test_a_setting_of_any_type_is_taken_or_refused_in_a_sentence(kind, setting):
    for value in WRONG:
        with contextlib.suppress(morphogen.MorphogenError):
            kind(**{setting: value})


def test_a_setting_of_the_wrong_type_is_named_with_the_types_it_may_have():
    with pytest.raises(morphogen.ConfigError, match=r"GrowOnce: at is of the wrong type; expected float, found 'x'"):
        morphogen.GrowOnce(at="x")
    with pytest.raises(morphogen.ConfigError, match=r"width is of the wrong type; expected float or None, found \[1\]"):
        morphogen.NetworkExpansion(width=[1])
    with pytest.raises(morphogen.ConfigError, match=r"dimensions is of the wrong type; expected a tuple of str"):
        morphogen.AutoProg(dimensions=(1, 2))
    morphogen.AutoProg(dimensions=["depth"], ratio=1)  # a list as YAML has it, an int for a float
    with pytest.raises(morphogen.ConfigError, match=r"AutoProg: multiple_of out of range"):
        morphogen.AutoProg(multiple_of=-1)


@pytest.mark.parametrize("method", [morphogen.Prog(stages=2), morphogen.ProgressiveResizing()], ids=str)
def test_images_that_a_model_does_not_take(method):
    network = morphogen.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    (grow, *_) = method.parts()
    with pytest.raises(morphogen.ConfigError, match=r"takes no images.*NetworkExpansion\(depth=0.5, stages=2\)"):
        grow.plan(network, 20)
