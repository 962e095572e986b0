"""Prog, the manual baseline of AutoProg (CVPR 2022); its card is README.md beside this file."""

from .prog import Prog

__all__ = ["Prog"]
