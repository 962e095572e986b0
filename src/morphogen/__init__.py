"""Morphogen: train networks faster by changing their size while they train.

    run = morphogen.attach(model, optimizer, morphogen.GrowOnce(), example=images, epochs=90)
    for epoch in range(90):
        run.begin_epoch(epoch)
        ...  # the loop as it was

or any size by hand:

    net = morphogen.trace(model, example)          # what of the model can change size
    half = net.subnetwork(width=0.5)               # a part of it, as plain data
    morphogen.morph(net, half, optimizer=optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)

A trained network leaves by `morphogen.save` and comes back by `morphogen.load`. What methods, operators and rules of
one's own are made of is in `morphogen.extend`.
"""

from typing import TYPE_CHECKING, Any

from . import extend as extend
from . import operators as operators  # enters the growth operators in the table
from .errors import MorphogenError
from .export.programs import save_onnx, save_program
from .export.weights import load, save
from .graph.trace import trace
from .methods import (
    SSL,
    AdaptRates,
    AutoProg,
    AutoProgZero,
    Bert2BERT,
    Dense,
    DynamicBatch,
    EfficientTrain,
    GrowOnce,
    GrowThenPrune,
    Net2Net,
    NetworkExpansion,
    OneTime,
    Prog,
    ProgressiveResizing,
    ProgressiveUnfreezing,
    ProgStack,
    PruneEarly,
    PruneTrain,
    Retrain,
    StackBERT,
    Supernet,
)
from .plan.recommend import recommend
from .run.attach import attach
from .search.candidates import Probe

if TYPE_CHECKING:
    from .morph.commit import morph
else:
    from . import morph  # the package, which is called like its function

__version__ = "0.1.0"

__all__ = [
    "AdaptRates",
    "AutoProg",
    "AutoProgZero",
    "Bert2BERT",
    "Dense",
    "DynamicBatch",
    "EfficientTrain",
    "GrowOnce",
    "GrowThenPrune",
    "MorphogenError",
    "Net2Net",
    "NetworkExpansion",
    "OneTime",
    "Probe",
    "Prog",
    "ProgressiveResizing",
    "ProgressiveUnfreezing",
    "ProgStack",
    "PruneEarly",
    "PruneTrain",
    "Retrain",
    "SSL",
    "StackBERT",
    "Supernet",
    "attach",
    "load",
    "morph",
    "recommend",
    "save",
    "save_onnx",
    "save_program",
    "trace",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """What an extender needs is found here too."""
    if name in extend.__all__:
        return getattr(extend, name)
    raise AttributeError(f"module 'morphogen' has no attribute '{name}'; `morphogen.extend` has what extenders need")
