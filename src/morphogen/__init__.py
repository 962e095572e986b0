"""Morphogen: train vision networks faster by changing the network's size while it trains.

    net = morphogen.trace(model, example)          # what of the model can change size
    half = net.subnetwork(width=0.5)               # a part of it, as plain data
    morphogen.morph(net, half, optimizer=optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)

or a method in one's own loop: `morphogen.attach`. A trained network leaves by `morphogen.save` and comes back by
`morphogen.load`.
"""

from . import operators as operators  # enters the growth operators in the table
from .errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    MorphError,
    MorphogenError,
    SubNetworkError,
    TraceError,
    TrainingError,
)
from .export.programs import save_onnx, save_program
from .export.weights import load, save
from .graph.rules import Axes, Call, layer_rule, rule
from .graph.trace import trace
from .masked import masked_dense
from .methods import (
    SSL,
    AutoProg,
    Bert2BERT,
    Combined,
    Dense,
    DynamicBatch,
    EfficientTrain,
    GrowThenPrune,
    Method,
    Net2Net,
    NetworkExpansion,
    OneTime,
    Prog,
    ProgressiveResizing,
    ProgStack,
    PruneTrain,
    Retrain,
    StackBERT,
    Supernet,
)
from .momentum import Momentum, MomentumNetwork
from .morph.commit import Change, Receipt, morph
from .morph.entry import DepthOperator, Entry, depth_operator
from .morph.growth import Gap, GrowthOperator, operator
from .network import Network
from .pruning.lasso import GroupLasso
from .run.attach import attach
from .run.part import Part
from .run.run import Run
from .schedule.mini_batch import MiniBatch
from .schedule.stages import Regularisation, Stage
from .search.candidates import Candidate, Found, Probe
from .search.supernet import ElasticSupernet
from .subnet import BlockStack, ChannelGroup, PinnedAxis, Role, SubNetwork

__version__ = "0.1.0"

__all__ = [
    "AutoProg",
    "Axes",
    "Bert2BERT",
    "BlockStack",
    "Call",
    "Candidate",
    "Change",
    "ChannelGroup",
    "CheckpointError",
    "Combined",
    "ConfigError",
    "Dense",
    "DepthOperator",
    "DynamicBatch",
    "EfficientTrain",
    "ElasticSupernet",
    "Entry",
    "ExportError",
    "Found",
    "Gap",
    "GroupLasso",
    "GrowThenPrune",
    "GrowthOperator",
    "Method",
    "MiniBatch",
    "Momentum",
    "MomentumNetwork",
    "MorphError",
    "MorphogenError",
    "Net2Net",
    "Network",
    "NetworkExpansion",
    "OneTime",
    "Part",
    "PinnedAxis",
    "Probe",
    "Prog",
    "ProgressiveResizing",
    "ProgStack",
    "PruneTrain",
    "Receipt",
    "Regularisation",
    "Retrain",
    "Role",
    "Run",
    "SSL",
    "StackBERT",
    "Stage",
    "SubNetwork",
    "SubNetworkError",
    "Supernet",
    "TraceError",
    "TrainingError",
    "attach",
    "depth_operator",
    "layer_rule",
    "load",
    "masked_dense",
    "morph",
    "operator",
    "rule",
    "save",
    "save_onnx",
    "save_program",
    "trace",
]
