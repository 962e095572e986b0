"""How much of a dense network can change its width, in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from .subnet import Structure, SubNetwork


@dataclass(frozen=True)
class Extent:
    """What is left of a network at half width.

    Attributes:
        share: of its parameters.
        stays: the tensors that hold the largest part of what is left because it cannot change; empty for none.
        reason: why they stay.
    """

    share: float
    stays: str
    reason: str

    def __str__(self) -> str:
        line = f"{self.share:.0%} of parameters at half width".replace("%", " %")
        return f"{line}; the largest part that stays: {self.stays} because: {self.reason}" if self.stays else line


def extent(structure: Structure, parameters: Collection[str]) -> Extent:
    """What is left where every channel group has half its channels, heads counted and not what is in them.

    Args:
        structure: of the dense network.
        parameters: the names of its parameters; other tensors are not counted.
    """
    half = SubNetwork({g.name: tuple(range(g.size if g.inner else max(1, g.size // 2))) for g in structure.groups})
    alive = structure.alive_mask(half)
    left = {name: prod(structure.tensors[name].alive_shape(alive)) for name in parameters}
    total = sum(prod(structure.tensors[name].shape) for name in parameters)
    of_reason, of_tensor = Counter[str](), dict[str, Counter[str]]()
    for pinned in structure.pinned:
        name, _, dim = pinned.axis.removesuffix("]").rpartition("[")
        if name in left:
            # Half of what is left would go as well, if this axis could change.
            weight = left[name] * pinned.size // (2 * structure.tensors[name].shape[int(dim)])
            of_reason[pinned.reason] += weight
            of_tensor.setdefault(pinned.reason, Counter())[name] += weight
    if not of_reason:
        return Extent(sum(left.values()) / max(total, 1), "", "")
    reason = of_reason.most_common(1)[0][0]
    tensors = of_tensor[reason]
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return Extent(sum(left.values()) / max(total, 1), tensors.most_common(1)[0][0] + more, reason)
