"""The morph: one operation that grows and prunes. Calling this package is calling `morphogen.morph.commit.morph`."""

import inspect
import sys
from types import ModuleType

from .commit import morph


class _Morph(ModuleType):
    """A package that is called like the function it is about, so that neither hides the other."""

    __call__ = staticmethod(morph)


sys.modules[__name__].__class__ = _Morph
__signature__ = inspect.signature(morph)
