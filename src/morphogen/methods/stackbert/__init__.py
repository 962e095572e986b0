"""StackBERT (Gong et al., ICML 2019) as Network Expansion compares to it; its card is README.md beside this file."""

from .stackbert import StackBERT

__all__ = ["StackBERT"]
