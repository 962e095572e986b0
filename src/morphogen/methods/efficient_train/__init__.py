"""EfficientTrain++ (Wang et al., TPAMI 2024); its card is README.md beside this file."""

from .efficient_train import EfficientTrain

__all__ = ["EfficientTrain"]
