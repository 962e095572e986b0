"""Net2Net (Chen, Goodfellow, Shlens, ICLR 2016); its card is README.md beside this file."""

from .net2net import Net2Net

__all__ = ["Net2Net"]
