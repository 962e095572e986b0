"""What one thread does at a time."""

from __future__ import annotations

import threading

READING = threading.RLock()
"""Held while a model is exported, or runs on fake tensors: PyTorch is another one then for the whole process."""
