"""A morph is whole or not at all, whatever is raised in it and wherever: all is bitwise the old or the new."""

import io
import linecache
import random
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from faults import Fault, Faulty, difference, handlers, interrupted, raises, told, world
from morphogen.dense.whole import whole

from nets import Tower

EPOCHS = 4


class Everything(Tower):
    """Also a layer that is used twice, one that is frozen, and a buffer that no state dict has."""

    def __init__(self):
        super().__init__(depth=3, channels=4, rate=0.2)
        self.shared = nn.Conv2d(4, 4, 1)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.register_buffer("factor", torch.ones(()), persistent=False)

    def forward(self, x):
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        x = self.frozen(self.shared(torch.relu(self.shared(x)))) * self.factor
        return self.fc(x.mean((2, 3)))


class Loop:
    """A loop with all that follows a network: averages, two groups with settings of their own, a GradScaler."""

    def __init__(self, method=None):
        torch.manual_seed(0)
        self.model, self.x = Everything(), torch.randn(2, 3, 8, 8)
        named = list(self.model.named_parameters())
        groups = [
            {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": 0.1},
            {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0, "lr": 2e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, amsgrad=True)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        self.scaler = torch.amp.GradScaler("cpu")
        self.momentum, self.run, self.net = None, None, None
        if method is None:
            self.net = morphogen.trace(self.model, self.x)
            self.momentum = torch.optim.swa_utils.AveragedModel(self.model)
        else:
            probe = morphogen.Probe(lambda x, y: F.cross_entropy(self.model(x), y), [(self.x, torch.arange(2))])
            self.run = morphogen.attach(
                self.model,
                self.optimizer,
                method,
                example=self.x,
                epochs=EPOCHS,
                ema=self.ema,
                probe=probe,
            )
            self.net = self.run.network

    def step(self):
        loss = self.model(self.x).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss if self.run is None else self.run.penalised(loss)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update_parameters(self.model)
        assert all(torch.isfinite(p).all() for p in self.model.parameters())

    def all_of_it(self, *, ids=True):
        held = dict(self.net.held.items())
        followers = [self.model, self.ema, self.momentum, self.optimizer, self.net]
        return told([*followers, self.run, self.scaler.state_dict(), held], ids=ids), world()


def morphs(start, end, **settings):
    """A morph from one sub-network to another, and the way back."""

    def made():
        loop = Loop()
        loop.step()
        ends = [loop.net.subnetwork(**at) for at in (start, end)]
        extra = {"ema": loop.ema, "optimizer": loop.optimizer}
        if settings.get("depth_operator") in ("momentum", "mogrow"):
            extra["momentum"] = loop.momentum
        else:
            extra["ema"] = [loop.ema, loop.momentum]

        def morph(target, **how):
            morphogen.morph(loop.net, target, **extra, **how)

        morph(ends[1])
        morph(ends[0], **settings)
        loop.step()
        return loop, lambda: morph(ends[1], **settings), lambda: morph(ends[0], **settings)

    return made


def epochs(method, before, epoch):
    """The beginning of an epoch of a run, and the way back: a state that was saved."""

    def made():
        loop = Loop(method)
        for number in range(before):
            loop.run.begin_epoch(number)
            loop.step()
            loop.step()
        file = io.BytesIO()
        torch.save(loop.run.state_dict(), file)

        def back():
            file.seek(0)
            loop.run.load_state_dict(torch.load(file, weights_only=True))

        end = loop.run.end if epoch == EPOCHS else lambda: loop.run.begin_epoch(epoch)
        return loop, end, back

    return made


SMALL, NARROW, LOW = {"width": 0.5, "depth": 0.7}, {"width": 0.5}, {"depth": 0.7}
PRUNE = morphogen.PruneTrain(ratio=0.9, interval=1, threshold=0.3)
CHANGES = {
    "width": morphs(NARROW, {}),
    "depth": morphs(LOW, {}),
    "both": morphs(SMALL, {}, operator="net2net"),
    "both, smaller": morphs({}, SMALL),
    "all from an average": morphs(LOW, {}, depth_operator="mogrow"),
    "factors come": morphs(LOW, {}, depth_operator="rezero"),
    "factors go": morphs({}, LOW, depth_operator="rezero"),
    "an epoch that grows": epochs(morphogen.NetworkExpansion(width=0.5, depth=0.7, stages=2), 2, 2),
    "an epoch that prunes": epochs(PRUNE, 2, 2),
    "the end of a search": epochs(morphogen.AutoProg(stages=2, search_epochs=1, dimensions=("depth",)), 1, 1),
    "the end of a run": epochs(PRUNE, EPOCHS, EPOCHS),
}
FEW = 2
"""Places at which something is raised, in every change; all lines with `pytest -m nightly`."""


class Back(Exception):
    """Everything as it was before, please."""


def looked_ahead(loop, change):
    """What a change would lead to."""
    seen = []

    def act():
        change()
        seen.append(loop.all_of_it(ids=False))
        raise Back

    with pytest.raises(Back):
        whole(act, loop.net, loop.optimizer, loop.ema, loop.momentum, loop.run)
    return seen[0]


def places(change):
    """Every line of Morphogen's own that runs in a change, the first and the last time that it does."""
    lines = []

    class Listed(Faulty):
        def _traced(self, frame, event, arg):
            if event != "exception":
                lines.append((frame.f_code.co_filename, frame.f_lineno, event))
            return self._traced

    with Listed(None, None):
        change()
    first, last = {}, {}
    for number, line in enumerate(lines, 1):
        first.setdefault(line, number)
        last[line] = number
    return sorted({*first.values(), *last.values()})


@pytest.fixture(autouse=True)
def ctrl_c():
    """A shell's background job begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


IN_EVERY_RUN = [(name, raises, FEW) for name in CHANGES] + [("width", interrupted, FEW), ("depth", interrupted, FEW)]
AT_NIGHT = [(name, act, None) for name in CHANGES for act in (raises, interrupted)]


@pytest.mark.parametrize(
    ("name", "act", "count"), [*IN_EVERY_RUN, *(pytest.param(*case, marks=pytest.mark.nightly) for case in AT_NIGHT)]
)
@pytest.mark.filterwarnings("ignore")
def test_a_change_is_whole_or_not_at_all(name, act, count):
    loop, change, way_back = CHANGES[name]()
    change()
    way_back()
    numbers = places(change)
    way_back()
    if count is not None:
        numbers = sorted(random.Random(f"{name} {act.__name__}").sample(numbers, count))
    ended, signals = {"old": 0, "new": 0}, handlers()
    for number in numbers:
        old = loop.all_of_it()
        new = looked_ahead(loop, change)
        assert loop.all_of_it() == old, difference(old, loop.all_of_it())
        faulty = Faulty(number, act)
        try:
            with faulty:
                change()
        except (Fault, KeyboardInterrupt):
            pass
        else:  # it was shorter this time, or Python was closing a generator, where it ignores what is raised
            assert faulty.seen <= number, faulty.where
        assert handlers() == signals, faulty.where
        left, is_old = difference(old, loop.all_of_it()), loop.all_of_it() == old
        ended["old" if is_old else "new"] += 1
        if is_old:
            change()
        found = loop.all_of_it(ids=False)
        assert found == new, (faulty.where, left, difference(new, found))
        loop.step()
        way_back()
        loop.step()
    assert ended["old"] + ended["new"] == len(numbers) and ended["new" if act is interrupted else "old"]
    if count is None:
        print(f"\n{name}, {act.__name__}: {len(numbers)} places, {ended}")


def ends(file, line):
    """A `with` runs its line once more when it ends; what is raised there skips its exit.

    Where PyTorch calls Python out of its core, what is raised may end the process, whoever raises it.
    """
    return linecache.getline(file, line).lstrip().startswith("with ") and Path(file).name != "private.py"


@pytest.mark.parametrize("count", [4, pytest.param(None, marks=pytest.mark.nightly)])
@pytest.mark.filterwarnings("ignore")
def test_what_is_everybodys_is_put_back(count):
    """In a change of a network on which nothing has been tried yet: exports and fake runs set much for a while."""
    loop, change, way_back = CHANGES["both, smaller"]()

    def anew():
        loop.net.answers.clear()
        loop.net.fits = {loop.net.dense}
        change()

    with Faulty(None, None, ends) as counted:
        anew()
    way_back()
    numbers = range(1, counted.seen + 1)
    assert len(numbers) > 20
    for number in numbers if count is None else random.Random(0).sample(numbers, count):
        before, faulty = world(), Faulty(number, raises, ends)
        with pytest.raises(Fault), faulty:
            anew()
        assert world() == before, faulty.where
