"""Settings that cannot work: one error with a useful text, before training starts, nothing changed."""

import pytest
import torch

import morphogen
from morphogen.methods import build_method

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
    "an unknown dimension": (
        lambda: morphogen.AutoProg(dimensions=("depth", "colour")),
        r"AutoProg: no such dimension; expected some of depth, resolution, width, found .*colour",
    ),
    "no dimension": (lambda: morphogen.AutoProg(dimensions=()), r"AutoProg: no such dimension"),
    "a dimension that is a text": (lambda: morphogen.Supernet(dimensions="depth"), r"Supernet: no such dimension"),
    "AutoProg with two shares": (lambda: morphogen.AutoProg(adaptive=(0.5, 0.5)), r"AutoProg: adaptive.*three shares"),
    "AutoProg by magic": (lambda: morphogen.AutoProg(depth_operator="magic"), r"no depth operator 'magic'"),
    "Supernet of ratio 2": (lambda: morphogen.Supernet(ratio=2), r"Supernet: ratio out of range.*found 2"),
    "Retrain without a file": (lambda: build_method("Retrain(file='none.json')"), r"none.json: not a growth schedule"),
    "an unknown setting": (lambda: build_method("Prog(depth=0.5)"), r"Prog has no setting 'depth'.*ratio, stages"),
    "a text for a number": (lambda: build_method("Prog(ratio='half')"), r"bad value for 'ratio'.*a number"),
    "no call": (lambda: build_method("Prog(0.5)"), r"NAME\(key=value, \.\.\.\)"),
}


@pytest.mark.parametrize("what", AT_ONCE)
def test_refused_when_it_is_made(what):
    make, text = AT_ONCE[what]
    with pytest.raises(morphogen.MorphogenError, match=text) as error:
        make()
    assert "\n" not in str(error.value)


def vit():
    return small("deit_tiny_patch16_224", img_size=16)[0]


def probe():
    return morphogen.Probe(lambda x, y: x.sum(), [(image(), None)])


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
    "a search as long as its stage": (
        Tower,
        morphogen.AutoProg(stages=4),
        SEARCH,
        r"AutoProg: a search longer than its stage.*at least 3 epochs, found 8 epochs in 4 stages, the shortest of 2",
    ),
    "a search longer than its stage, thrown away": (
        Tower,
        morphogen.AutoProg(stages=4, search_epochs=3, recycle=False),
        SEARCH,
        r"AutoProg: a search longer than its stage.*at least 3 epochs",
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
    "AutoProg without steps": (
        Tower,
        morphogen.AutoProg(stages=2),
        SEARCH | {"steps_per_epoch": None},
        r"AutoProg: .*steps are not known",
    ),
    "AutoProg and another method": (
        Tower,
        morphogen.Combined((morphogen.AutoProg(stages=2), morphogen.NetworkExpansion(stages=2))),
        SEARCH,
        r"AutoProg \+ NetworkExpansion: .*cannot be combined.*Retrain",
    ),
    "Supernet and another method": (
        Tower,
        morphogen.Combined((morphogen.Prog(stages=2), morphogen.Supernet())),
        SEARCH,
        r"Prog \+ Supernet: .*cannot be combined",
    ),
    "AutoProg without a stack": (Plain, morphogen.AutoProg(stages=2), SEARCH, r"the depth of this model cannot change"),
    "AutoProg without images": (
        lambda: Stacked(4),
        morphogen.AutoProg(stages=2, dimensions=("resolution",)),
        SEARCH | {"example": torch.zeros(2, 3)},
        r"the resolution of this model cannot change",
    ),
    "the width of attention in a growth space": (
        vit,
        morphogen.AutoProg(stages=2, dimensions=("width",)),
        SEARCH,
        r"no rule for the op|the width of this model cannot change",
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
    "a space of words": (
        Tower,
        morphogen.AutoProg(stages=2, space=("small", "large")),  # pyright: ignore
        SEARCH,
        r"not a sub-network; .*found 'small'",
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
    "StackBERT in one epoch": (Tower, morphogen.StackBERT(), {"epochs": 1}, r"StackBERT: a stage needs"),
    "ProgStack in two epochs": (Tower, morphogen.ProgStack(), {"epochs": 2}, r"ProgStack: a stage needs"),
    "ProgStack on six blocks": (
        lambda: Tower(6),
        morphogen.ProgStack(),
        {},
        r"ProgStack, blocks: .*1/4.*a multiple of 4 blocks, found 6.*Prog",
    ),
    "StackBERT on five blocks": (lambda: Tower(5), morphogen.StackBERT(), {}, r"StackBERT, blocks: .*multiple of 2"),
    "no steps for the momentum network": (
        Tower,
        morphogen.Prog(),
        {"steps_per_epoch": None},
        r"Prog: .*steps are not known.*steps_per_epoch.*decay",
    ),
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
    "width of attention": (vit, morphogen.NetworkExpansion(width=0.5, stages=2), {}, r"no rule for the op|no channels"),
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


def test_a_decay_needs_no_steps():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = morphogen.attach(model, optimizer, morphogen.Prog(decay=0.998), example=image(), epochs=4)
    assert run.momentum is not None and run.momentum.decay == 0.998
