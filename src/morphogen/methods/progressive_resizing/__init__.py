"""Progressive resizing, as FFCV and timm schedule it; its card is README.md beside this file."""

from .progressive_resizing import ProgressiveResizing

__all__ = ["ProgressiveResizing"]
