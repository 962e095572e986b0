"""Retraining with a schedule that a run found."""

from .retrain import Retrain

__all__ = ["Retrain"]
