"""ProgStack (Gong et al., ICML 2019) as AutoProg compares to it; its card is README.md beside this file."""

from .progstack import ProgStack

__all__ = ["ProgStack"]
