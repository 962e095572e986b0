"""What changes size together: a network, its optimizers and its averaged copies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..dense.whole import about_to_write
from ..machine.parallel import wrap_anew
from ..machine.ranks import check_same, ranks, spread
from ..morph.averages import Shadows
from ..morph.commit import Receipt, morph
from .assembly import Assembly
from .values import parameter_names


class Followers:
    """A network and all that follows it.

    Attributes:
        ema: the averaged copies that the loop keeps.
        optimizers: of the network.
    """

    def __init__(self, network: Network, assembly: Assembly, optimizers: Sequence[Optimizer], ema: Sequence[nn.Module]):
        self._network, self._assembly = network, assembly
        self.optimizers, self.ema = list(optimizers), list(ema)

    @property
    def trees(self) -> list[nn.Module]:
        """The model and its averages."""
        for average in self.ema:
            if isinstance(average, Shadows):
                average.pull()
        return [self._network.model, *self.ema]

    @property
    def averages(self) -> list[nn.Module]:
        """The averages that parts keep."""
        return [own for part in self._assembly if (own := part.average) is not None]

    @property
    def names(self) -> dict[nn.Parameter, str]:
        """Of all parameters that the optimizers hold, or may come to hold."""
        return parameter_names(self._network.model, *self.optimizers)

    def morph(self, target: SubNetwork, *, grows: bool) -> Receipt:
        """Change them all; on every rank to the same values. See `morph`.

        Args:
            target: a sub-network of the network.
            grows: whether new blocks may be taken from an average.
        """
        for part in self._assembly if grows else ():
            part.before_growth(target)
        sources, averages = self.averages, list(self.ema)
        if not grows:  # averages like any other: nothing comes from them
            sources, averages = [], [*averages, *sources]
        receipt = morph(
            self._network,
            target,
            optimizer=self.optimizers,
            ema=averages,
            operator=self._assembly.operator,
            depth_operator=self._assembly.depth_operator,
            momentum=sources[0] if sources else None,
        )
        # What the ranks filled each with its own random numbers becomes rank 0's.
        tensors = [t for tree in (*self.trees, *self.averages) for t in (*tree.parameters(), *tree.buffers())]
        if ranks() > 1:
            about_to_write(tensors)
        spread(tensors)
        check_same("the network after a morph", tensors, target.to_json())
        return receipt

    def wrap_anew(self) -> None:
        """Bring wrappers around the model up to date, see `wrap_anew`."""
        wrap_anew(self._network.model, searching=self._assembly.busy)
