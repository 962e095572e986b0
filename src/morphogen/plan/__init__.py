"""The planner: what a method would save on this device, before it is run."""

from .planner import Plan, Run, StagePlan, Supply, plan
from .steps import Training

__all__ = ["Plan", "Run", "StagePlan", "Supply", "Training", "plan"]
