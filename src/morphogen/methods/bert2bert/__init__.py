"""bert2BERT (Chen et al., ACL 2022); its card is README.md beside this file."""

from .bert2bert import Bert2BERT

__all__ = ["Bert2BERT"]
