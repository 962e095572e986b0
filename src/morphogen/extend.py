"""What methods, parts, operators and rules of one's own are made of, and the types that the library gives back."""

from .dense.masked import masked_dense
from .dense.network import Network
from .dense.subnet import BlockStack, ChannelGroup, PinnedAxis, Role, SubNetwork
from .errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    MorphError,
    SubNetworkError,
    TraceError,
    TrainingError,
)
from .graph.rules import Axes, Call, layer_rule, rule
from .methods import METHODS, Combined, Method
from .morph.commit import Change, Receipt
from .morph.entry import DepthOperator, Entry, depth_operator
from .morph.growth import Gap, GrowthOperator, operator
from .parts import Average, Batch, Grow, Narrow, Prune, Regularise, Resize, Search, Unfreeze
from .parts.momentum import Momentum, MomentumNetwork
from .pruning.lasso import GroupLasso
from .pruning.policy import Pruning
from .run.part import Part
from .run.run import Run
from .schedule.mini_batch import MiniBatch
from .schedule.stages import Regularisation, Stage
from .search.candidates import Candidate, Found
from .search.supernet import ElasticSupernet

__all__ = [
    "METHODS",
    "Average",
    "Axes",
    "Batch",
    "BlockStack",
    "Call",
    "Candidate",
    "Change",
    "ChannelGroup",
    "CheckpointError",
    "Combined",
    "ConfigError",
    "DepthOperator",
    "ElasticSupernet",
    "Entry",
    "ExportError",
    "Found",
    "Gap",
    "GroupLasso",
    "Grow",
    "GrowthOperator",
    "Method",
    "MiniBatch",
    "Momentum",
    "MomentumNetwork",
    "MorphError",
    "Network",
    "Part",
    "PinnedAxis",
    "Narrow",
    "Prune",
    "Pruning",
    "Receipt",
    "Regularisation",
    "Regularise",
    "Resize",
    "Role",
    "Run",
    "Search",
    "Stage",
    "SubNetwork",
    "SubNetworkError",
    "TraceError",
    "TrainingError",
    "Unfreeze",
    "depth_operator",
    "layer_rule",
    "masked_dense",
    "operator",
    "rule",
]
