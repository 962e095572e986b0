"""Any settings of `morphogen train`: it trains to the end, or is refused in one line and leaves nothing behind."""

import itertools
import math
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from morphogen import cli
from morphogen.errors import MorphogenError
from morphogen.methods import METHODS, build_method
from morphogen.parts import Search
from morphogen.train import books
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from nets import Tower

EPOCHS = 4
CONFIGURATIONS = [5, pytest.param(int(os.environ.get("CONFIGURATIONS", "50")), marks=pytest.mark.nightly)]
"""A hundred take two minutes."""


class Few(nn.Sequential):
    """A few layers, and dropout."""

    def __init__(self, num_classes):
        conv = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1)
        super().__init__(*conv, nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, num_classes))


class Deep(Tower):
    """Blocks with stochastic depth."""

    def __init__(self, num_classes, drop_path_rate=0.0):
        super().__init__(4)
        self.fc = nn.Linear(12, num_classes)


class Broken(Few):
    """What a user's own model may do wrong."""

    def __init__(self, num_classes, how):
        super().__init__(num_classes)
        self.how = how
        if how == "frozen":
            self.requires_grad_(False)

    def forward(self, input):
        output = super().forward(input)
        match self.how:
            case "raises":
                raise RuntimeError("a reason\nof two lines")
            case "branches":
                return output if output.sum() > 0 else -output
            case "two outputs":
                return output, output
            case "nothing":
                return None
            case "few classes":
                return output[:, :3]
            case "one number":
                return output.mean()
            case "nan":
                return output / 0 * 0
            case "whole numbers":
                return output.long()
            case "no gradient":
                return output.detach()
        return output


HOW = [
    "raises",
    "branches",
    "two outputs",
    "nothing",
    "few classes",
    "one number",
    "nan",
    "whole numbers",
    "no gradient",
]
TINY = "timm:vit_tiny_patch16_224(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)"
DEEP = "test_any_config:Deep"
MODELS = {
    "test_any_config:Few": {"exclude": ["[]", "['0']"], "image_size": [8, 13, 16], "sparsity_map": ["['0']"]},
    DEEP: {"exclude": ["[conv1]", "[blocks.0]"], "image_size": [8, 9], "drop_path": [0.1, 0.99]},
    "resnet8(width=4)": {"exclude": ["[layer1]"], "image_size": [8, 11, 16], "sparsity_map": ["[conv1]"]},
    TINY: {"exclude": ["[head]", "[blocks.0]", "[blocks]"], "drop_path": [0.1, 0.99]},
}
"""Settings that fit each."""
NO_MODELS = [
    "resnet5O",
    "resnet8(width='a')",
    "resnet8(8",
    "resnet8(width=0)",
    "no.such:net",
    "",
    "timm:",
    "test_any_config:EPOCHS",
    "test_any_config:Nothing",
    "resnet8(width=4, depth=2)",
    "test_any_config:Broken",
    "resnet8(num_classes=2)",
    *(f"test_any_config:Broken(how='{how}')" for how in [*HOW, "frozen"]),
]

GOOD = {
    "epochs": [2, 3, 4],
    "batch_size": [8, 8, 12],
    "images": [8, 16, 32],
    "optimizer": ["sgd", "adamw"],
    "lr": [0.1, 0.001, 1e-30],
    "warmup_epochs": [0, 1],
    "weight_decay": [0, 0.05, 2],
    "clip_grad": [0, 1e-6, 1, ".inf"],
    "label_smoothing": [0, 0.1, 0.999],
    "randaugment": [0, 9, 0.5, 10],
    "erasing": [0, 0.25, 1],
    "mixup": [0, 0.8, 1e-3, 100],
    "cutmix": [0, 1.0],
    "repeated_augmentation": [0, 1, 3, 1000],
    "ema": [0, 0.9, 0.999999],
    "precision": ["float32", "bfloat16"],
    "channels_last": ["true", "false"],
    "seed": [0, 2**31 - 1],
    "save_every": [0, 300],
    "keep": [1, 3],
    "resume": ["true", "false"],
    "lr_schedule": ["cosine", "linear", "wsd(decay=0.5)", "poly", "milestones(at=(0.5,))"],
}
BAD = {
    "epochs": ["0", "2.5", "many", "", "1e3", "null"],
    "batch_size": ["0", "-8", "5000", "17", "1"],
    "images": ["0", "3", "1000000"],
    "test_images": ["0", "1", "-1"],
    "image_size": ["7", "-8", "100000000", "8.5", "null"],
    "optimizer": ["lion", "SGD", ""],
    "lr": ["0", "-1", ".nan", ".inf", "1e30", "1e5", "fast"],
    "warmup_epochs": ["9", "-1", "0.5"],
    "lr_schedule": ["sine", "wsd(decay=2)", "milestones(at=(0,))", "poly(power='a')"],
    "weight_decay": ["-1", ".nan", ".inf", "1e30"],
    "clip_grad": ["-1", ".nan", "1e-320"],
    "label_smoothing": ["1", ".nan", "-0.1"],
    "randaugment": ["11", ".nan", "-1", "1e-320"],
    "erasing": ["1.5", ".nan", "1e-320"],
    "mixup": ["-1", ".nan", ".inf", "1e308", "1e-320"],
    "cutmix": ["-1", ".nan", ".inf", "1e308", "1e-320"],
    "repeated_augmentation": ["-1", "1.5", "1000000000000", "9" * 30],
    "drop_path": ["1", ".nan", "0.999"],
    "ema": ["1", ".nan", "1e-320"],
    "precision": ["float16", ""],
    "channels_last": ["maybe", "2"],
    "exclude": ["[nowhere]", "[]]", "nowhere", "['']", "[1]", "[null]"],
    "sparsity_map": ["[nowhere]", "['']", "[bn1]", "[fc]"],
    "seed": ["-1", "99999999999", "1.5"],
    "data": ["nowhere", "", "cifar10:nowhere", "digits:", ":digits", "imagenet:", "cifar10:"],
    "device": ["tpu", "", "cuda:99", "meta", "cpu:0", "cpu:1"],
    "workers": ["-1", "1000000"],
    "token_labels": ["nowhere", "."],
    "save_every": ["-1", ".nan", ".inf"],
    "keep": ["0", "-1"],
    "resume": ["maybe"],
    "colour": ["red"],
    "model": NO_MODELS,
}

RATIO = [0.5, 0.6, 0.75, 0.999, 1.0]
ARGUMENTS = {
    "ratio": RATIO,
    "width": RATIO,
    "depth": RATIO,
    "stages": [1, 2, 3],
    "search_epochs": [1],
    "subset": [None, 8, 16],
    "dimensions": [("depth",), ("width",), ("resolution", "width"), ("depth", "resolution", "width")],
    "multiple_of": [1, 2, 4, 1000],
    "recycle": [True, False],
    "operator": ["orthogonal", "random", "replicate", "net2net", "fpi", "bert2bert", "net2net(noise=0.1)"],
    "depth_operator": ["interpolate", "stack", "random", "identity", "rezero", "momentum", "mogrow", "mostack"],
    "decay": [None, 0.9, 0],
    "horizon": [0.1, 1],
    "adaptive": [(0.5, 0, 0), (1, 1, 1)],
    "budget": [None, 1, 0.5],
    "step": [1, 2, 8],
    "limit": [None, 12, 32],
    "scaling": ["auto", "linear", "sqrt"],
    "noise": [0, 0.01],
    "threshold": [1e-4, 0.2, 1e3],
    "proximal": [True, False],
    "interval": [None, 1, 2],
    "start": [0.25, 0.5],
    "at": [0.5, 0.75],
    "trained": [0.25],
    "sparse": [0.5, 0.75],
    "space": [()],
    "file": ["schedule.json"],
}
WRONG = [
    None,
    True,
    "",
    "half",
    0,
    -1,
    2,
    0.0,
    1e-9,
    2.5,
    1e308,
    10**400,
    "nan",
    (),
    (1,),
    ("depth", "colour"),
    [0.5],
    {},
    {"a": 1},
    "net2net(noise=-1)",
    "net2net(noise='a')",
    "net2net(noise=None)",
    "random(",
    "a\nb",
    b"x",
    1j,
    {1, 2},
    (None, None, None),
]


DEEPER = {"Prog", "ProgStack", "StackBERT", "AutoProg", "Supernet"}
"""Methods for networks with a stack of blocks."""
IN_STAGES = {"NetworkExpansion", "AutoProg", "Prog", "Bert2BERT", "Net2Net", "ProgressiveResizing"}
"""Methods whose stages would not fit so few epochs."""


@st.composite
def one_method(draw, names, wrong=False):
    """The text of one of these methods with some of its settings, one of them wrong if asked for."""
    name = draw(st.sampled_from(sorted(names)))
    known = [key for key, field in METHODS[name].__dataclass_fields__.items() if field.init and key in ARGUMENTS]
    chosen = {key: draw(st.sampled_from(ARGUMENTS[key])) for key in known if draw(st.booleans())}
    if name in IN_STAGES:
        chosen["stages"] = draw(st.sampled_from([2, 2, 2, 3]))
    if wrong:
        chosen[draw(st.sampled_from([*known, "hight"]))] = draw(st.sampled_from(WRONG))
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in chosen.items())})"


@st.composite
def methods(draw, names, wrong):
    """One method, or several."""
    parts = [draw(one_method(names, wrong))]
    while len(parts) < 3 and draw(st.integers(0, 4)) == 0:
        parts.append(draw(one_method(names)))
    return " + ".join(parts)


@st.composite
def configurations(draw):
    """Settings as on the command line; in two of seven one is wrong."""
    chosen = {key: f"{draw(st.sampled_from(values))}" for key, values in GOOD.items() if draw(st.integers(0, 3)) == 0}
    chosen = {"epochs": f"{EPOCHS}", "batch_size": "8", "images": "8", "test_images": "20"} | chosen
    chosen["model"] = model = draw(st.sampled_from(list(MODELS)))
    chosen |= {k: f"{draw(st.sampled_from(v))}" for k, v in MODELS[model].items() if draw(st.integers(0, 3)) == 0}
    wrong = draw(st.sampled_from([*["nothing"] * 5, "a setting", "a method"]))
    stacks = model in (DEEP, TINY) or draw(st.integers(0, 9)) == 0
    names = METHODS.keys() - {"Dense", "Retrain"} - (set() if stacks else DEEPER)
    chosen["method"] = draw(methods(METHODS if wrong == "a method" else names, wrong == "a method"))
    if wrong == "a setting":
        key = draw(st.sampled_from(list(BAD)))
        chosen[key] = draw(st.sampled_from(BAD[key]))
    return chosen


OURS = (
    "the network grew in epoch ",
    "resolution (",
    "all channels of ",
    "all blocks of ",
    "behind an adaptive optimizer ",
    "digits: ",  # classes without a training image
    "the penalty ends with ",
)
"""How our own warnings begin; PyTorch's would be none that a user understands."""


def trained(arguments):
    """Train as `morphogen train` does, in memory alone; returns the number of morphs."""
    _, config = cli._parse(arguments)
    run = Run(config, load_data(config), build_method(config.method), config.method, config.seed)
    epochs = list(run.epochs())
    search = run.attached.part(Search)
    assert len(epochs) == run.total_epochs or (search is not None and search.searches)
    assert all(math.isfinite(epoch.loss) and 0 <= epoch.accuracy <= 100 for epoch in epochs)
    for name, tensor in run.result.state_dict().items():
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), name
    return len(run.attached.history) - 1


@pytest.mark.parametrize("count", CONFIGURATIONS)
def test_random_configurations(count, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(books, "inference_speeds", lambda *_: {})
    monkeypatch.chdir(tmp_path)
    seen = Counter()

    def through_the_command_line(arguments, code):
        """A few of them, with the files they write."""
        capsys.readouterr()
        assert cli.main([*arguments, "--output", "out"]) == code
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("morphogen: ") for line in lines) and (code == 0 or lines), lines
        assert Path("out/model.pt").exists() == (code == 0)
        shutil.rmtree("out", ignore_errors=True)

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(configurations())
    def one(chosen):
        arguments = [
            "train",
            "--data",
            "digits",
            *itertools.chain(*((f"--{key}", value) for key, value in chosen.items())),
        ]
        refused = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                seen["morphed"] += bool(trained(arguments))
            except MorphogenError as error:
                refused = error
        outcome = "trained" if refused is None else "diverged" if "not finite" in str(refused) else "refused"
        seen[outcome] += 1
        assert refused is None or (str(refused) and "\n" not in str(refused))
        for warning in caught:
            ours = str(warning.message).startswith(OURS) and "\n" not in str(warning.message)
            assert ours or warning.category in (DeprecationWarning, FutureWarning), str(warning.message)
        assert not list(tmp_path.iterdir())
        if outcome != "diverged" and seen[outcome] % 25 == 1:
            through_the_command_line(arguments, 0 if refused is None else 2)

    one()
    least = {"trained": 0.35, "morphed": 0.04, "refused": 0.2}
    assert all(seen[outcome] > share * count for outcome, share in least.items()), seen


def test_any_wrong_value_of_any_setting_is_refused_or_taken():
    """When the method is made, with every wrong value for every setting in turn; some are right there."""
    refused = 0
    for name, method in METHODS.items():
        for key in [key for key, field in method.__dataclass_fields__.items() if field.init]:
            for value in WRONG:
                try:
                    build_method(f"{name}({key}={value!r})")
                except MorphogenError as error:
                    assert "\n" not in str(error)
                    refused += 1
    assert refused > 1500
