"""Methods: what parts they are made of, one line each in the registry."""

import re

from ..spec import build
from .adapt_rates import AdaptRates
from .autoprog import AutoProg, Supernet
from .autoprog_zero import AutoProgZero
from .combined import Combined
from .dynamic_batch import DynamicBatch
from .grow_once import GrowOnce
from .method import Method
from .network_expansion import NetworkExpansion
from .prog import Prog
from .progressive_unfreezing import ProgressiveUnfreezing
from .prune_early import PruneEarly
from .prunetrain import SSL, GrowThenPrune, OneTime, PruneTrain
from .retrain import Retrain
from .schedules import Bert2BERT, Dense, EfficientTrain, Net2Net, ProgressiveResizing, ProgStack, StackBERT

METHODS: dict[str, type[Method]] = {
    "AdaptRates": AdaptRates,
    "AutoProg": AutoProg,
    "AutoProgZero": AutoProgZero,
    "Bert2BERT": Bert2BERT,
    "Dense": Dense,
    "DynamicBatch": DynamicBatch,
    "EfficientTrain": EfficientTrain,
    "GrowOnce": GrowOnce,
    "GrowThenPrune": GrowThenPrune,
    "Net2Net": Net2Net,
    "NetworkExpansion": NetworkExpansion,
    "OneTime": OneTime,
    "Prog": Prog,
    "ProgStack": ProgStack,
    "ProgressiveResizing": ProgressiveResizing,
    "ProgressiveUnfreezing": ProgressiveUnfreezing,
    "PruneEarly": PruneEarly,
    "PruneTrain": PruneTrain,
    "Retrain": Retrain,
    "SSL": SSL,
    "StackBERT": StackBERT,
    "Supernet": Supernet,
}
"""The registry: the name users write -> the method."""


def build_method(text: str) -> Method:
    """`Prog(ratio=0.4)`, or several at work in one run: `EfficientTrain + NetworkExpansion(depth=0.5)`.

    Raises:
        ConfigError, MorphError: an unknown name or setting, a value out of range.
    """
    methods = [build(part, METHODS, "method") for part in re.split(r"\+(?![^(]*\))", text)]
    return methods[0] if len(methods) == 1 else Combined(tuple(methods))


__all__ = [
    "METHODS",
    "SSL",
    "AdaptRates",
    "AutoProg",
    "AutoProgZero",
    "Bert2BERT",
    "Combined",
    "Dense",
    "DynamicBatch",
    "EfficientTrain",
    "GrowOnce",
    "GrowThenPrune",
    "Method",
    "Net2Net",
    "NetworkExpansion",
    "OneTime",
    "Prog",
    "ProgStack",
    "ProgressiveResizing",
    "ProgressiveUnfreezing",
    "PruneEarly",
    "PruneTrain",
    "Retrain",
    "StackBERT",
    "Supernet",
    "build_method",
]
