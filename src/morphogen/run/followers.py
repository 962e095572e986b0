"""What changes size together: a network, its optimizers and its averaged copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..dense.whole import about_to_write, whole
from ..errors import ConfigError
from ..machine.parallel import check_wrappers, wrap_anew
from ..machine.ranks import as_one, check_same, ranks, spread
from ..machine.sharded import gathered, is_sharded, local
from ..morph.averages import Shadows, averaged
from ..morph.commit import Receipt, morph
from ..morph.entry import depth_named
from .assembly import Assembly
from .state import describe
from .values import parameter_names

if TYPE_CHECKING:
    from .run import Run


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
        with self.gathered():
            with as_one({"morph": target.to_json()}):
                check_wrappers(self._network.model, searching=self._assembly.busy)
                receipt = morph(
                    self._network,
                    target,
                    optimizer=self.optimizers,
                    ema=averages,
                    operator=self._assembly.operator,
                    depth_operator=self._assembly.depth_operator,
                    momentum=sources[0] if sources else None,
                )
            self._spread(receipt)
        return receipt

    def gathered(self) -> AbstractContextManager[None]:
        """In here all tensors are whole, where the ranks hold shards of them; see `gathered`."""
        return gathered(self._network.model, self.optimizers)

    @property
    def change(self) -> Callable[[Callable[[], None], Run], None]:
        """Calls what changes a run; where that raises, all is as before, see `whole`.

        Of a sharded model a morph alone is: its parameters are other objects whenever they are gathered.
        """
        return _change_sharded if is_sharded(self._network.model) else whole

    def _spread(self, receipt: Receipt) -> None:
        """What the ranks filled each with its own random numbers becomes rank 0's; statistics stay each rank's own."""
        filled = dict[str, torch.Tensor]()
        for number, tree in enumerate([*self.trees, *self.averages]):
            inner = averaged(tree, self._network.model)
            tensors = dict(inner.named_parameters())
            tensors |= {name: b for name, b in inner.named_buffers() if name in receipt.entered}
            filled |= {f"{name} of average {number}" if number else name: t for name, t in tensors.items()}
        if ranks() > 1:
            about_to_write(filled.values())
        spread(filled.values())
        check_same({}, filled)

    def wrap_anew(self) -> None:
        """Bring wrappers around the model up to date, see `wrap_anew`."""
        wrap_anew(self._network.model, searching=self._assembly.busy)

    def check_wrappers(self) -> None:
        """Refuse wrappers that could not follow, where anything is to change; see `check_wrappers`."""
        if self._assembly.prunes or any(possible != self._network.dense for possible in self._assembly.possible):
            check_wrappers(self._network.model, searching=self._assembly.busy)

    @contextmanager
    def as_one(self, run: Run, epoch: object) -> Iterator[None]:
        """What one rank raises as an epoch begins, all raise; and they begin the same one, with the same weights."""
        what = {
            "epoch": repr(epoch),
            "method": describe(run.method),
            "length of the run": run.epochs,
            "dense network": self._network.structure.fingerprint(),
            "sub-network": self._network.current.to_json(),
            "run": "over" if run.ended else "at work",
        }
        weights = {name: p for name, p in self._network.model.named_parameters() if local(p) is p}
        with as_one(what, weights if run.epoch >= 0 else {}):
            if run.epoch < 0:  # what was done since `attach`
                self.check_wrappers()
                check_sharded(self._network.model, self._assembly, self.ema)
            yield


def _change_sharded(act: Callable[[], None], run: Run) -> None:
    try:
        act()
    except BaseException:
        run.begin_anew()
        raise


def check_sharded(model: nn.Module, assembly: Assembly, averages: Sequence[nn.Module]) -> None:
    """Refuse, where a model is sharded, what needs whole weights between two morphs."""
    if not is_sharded(model):
        return
    needs = [part.name for part in assembly if not part.sharded]
    needs += ["an averaged copy (ema=)"] if averages else []
    needs += [f"depth_operator={assembly.depth_operator}"] if depth_named(assembly.depth_operator).rezero else []
    if needs:
        raise ConfigError(
            "the model is sharded by fully_shard, and the method needs whole weights between two morphs",
            expected="growth and image sizes alone",
            found=", ".join(needs),
            todo='Use DistributedDataParallel, or grow without an average (depth_operator="interpolate")',
        )
