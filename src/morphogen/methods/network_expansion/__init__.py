"""Network Expansion (Ding et al., CVPR 2023); its card is README.md beside this file."""

from .network_expansion import NetworkExpansion

__all__ = ["NetworkExpansion"]
