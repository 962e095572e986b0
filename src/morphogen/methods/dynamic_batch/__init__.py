"""PruneTrain's dynamic mini-batch; its card is README.md beside this file."""

from .dynamic_batch import DynamicBatch

__all__ = ["DynamicBatch"]
