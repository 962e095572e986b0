"""The README's loop and CONTRIBUTING's examples run; every method has a card. All other pages: `test_docs.py`."""

import re
from pathlib import Path

import torch
import torchvision
from torch import nn

import morphogen
from morphogen.graph.rules import RULES, rule
from morphogen.methods import METHODS
from morphogen.morph.entry import DEPTH_OPERATORS, depth_operator
from morphogen.morph.growth import OPERATORS, operator

from nets import Tower, image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_loop_of_the_readme_runs():
    (code,) = blocks(README)
    names = {}
    exec(code, names)
    model = names["model"]
    assert model.conv1.out_channels == 64
    fresh = torchvision.models.resnet18(num_classes=model.fc.out_features)
    fresh.load_state_dict(model.state_dict())


def test_the_loop_needs_at_most_five_added_lines():
    marks = re.findall(r"# (\d)\n", blocks(README)[0])
    assert marks == ["1", "2", "3", "4"]
    added = [line for line in blocks(README)[0].splitlines() if "morphogen" in line or "run." in line]
    assert len(added) == len(marks)


def test_contributing_examples_are_enough():
    """A made-up op and operator, added by the documented lines alone."""
    rule_code, operator_code, depth_code = blocks((ROOT / "CONTRIBUTING.md").read_text())
    names = {"rule": rule, "operator": operator, "torch": torch, "Call": object, "Axes": object, "Gap": morphogen.Gap}
    names |= {"depth_operator": depth_operator, "Entry": morphogen.Entry}
    try:
        exec(rule_code, names)
        exec(operator_code, names)
        exec(depth_code, names)

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 3)
                self.fc = nn.Linear(8, 2)

            def forward(self, x):
                return self.fc(torch.fake_quantize_per_tensor_affine(self.conv(x), 0.1, 0, -128, 127).mean((2, 3)))

        net = morphogen.trace(Odd(), torch.randn(1, 3, 8, 8))
        morphogen.morph(net, net.subnetwork(width=0.5))
        morphogen.morph(net, net.dense, operator="zeros")
        assert net.model.conv.weight[4:].eq(0).all()

        deep = morphogen.trace(Tower(), image())
        morphogen.morph(deep, deep.subnetwork(depth=0.5))
        morphogen.morph(deep, deep.dense, depth_operator="halved")
        assert torch.equal(deep.model.blocks[1].conv.weight, deep.model.blocks[0].conv.weight / 2)
    finally:
        RULES.pop("fake_quantize_per_tensor_affine", None)
        OPERATORS.pop("zeros", None)
        DEPTH_OPERATORS.pop("halved", None)


CARDS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("src/morphogen/methods/cards/*.md"))]


def test_every_method_has_a_card():
    """A card is of the method that its file is named after, and names it and its kin."""
    named = {card: {*re.findall(r"\w+", (ROOT / card).read_text())} & METHODS.keys() for card in CARDS}
    assert {*METHODS} - {name for found in named.values() for name in found} <= {"Dense"}
    for card, found in named.items():
        assert Path(card).stem.replace("_", "") in {name.lower() for name in found}, card
    assert len(CARDS) >= 12
