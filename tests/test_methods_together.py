"""Methods that are added: in any order the same, or refused by name."""

import pytest
import torch

import morphogen
from morphogen.extend import ConfigError

from own_loops import attached, quiet_run


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (morphogen.NetworkExpansion(width=0.5, operator="random"), morphogen.Bert2BERT(width=0.5)),
        (morphogen.NetworkExpansion(width=0.5), morphogen.NetworkExpansion(width=0.7, operator="random")),
        (morphogen.NetworkExpansion(depth=0.5, decay=0.9), morphogen.Prog(decay=0.99)),
        (morphogen.ProgStack(depth_operator="mostack", decay=0.9), morphogen.ProgStack(depth_operator="mostack")),
        (morphogen.DynamicBatch(step=4), morphogen.DynamicBatch(step=8)),
        (morphogen.PruneTrain(), morphogen.OneTime()),
        (morphogen.EfficientTrain(), morphogen.ProgressiveResizing()),
        (morphogen.AutoProg(), morphogen.DynamicBatch()),
    ],
    ids=str,
)
def test_methods_that_do_not_go_together_are_refused_by_name(one, other):
    for methods in ((one, other), (other, one)):
        names = " \\+ ".join(sorted(map(str, methods)))
        with pytest.raises(ConfigError, match=f"^{names}: "):
            methods[0] + methods[1]


def test_the_same_twice_is_once():
    assert len((morphogen.PruneTrain() + morphogen.PruneTrain()).parts()) == 2
    assert attached(morphogen.PruneTrain() + morphogen.PruneTrain())[2].part(morphogen.extend.Prune) is not None


def test_the_order_of_methods_does_not_matter():
    one, other = morphogen.NetworkExpansion(width=0.5, stages=2, operator="random"), morphogen.Prog(stages=2)
    assert one + other == other + one
    models = [quiet_run(method).state_dict() for method in (one + other, other + one)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
