"""Automated progressive learning: the growth schedule found while training (AutoProg, section 4, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..dense.depth import interpolated
from ..dense.network import Network
from ..dense.subnet import SubNetwork, union
from ..errors import ConfigError
from ..morph.entry import DepthOperator, depth_named
from ..parts import Average, Regularise, Resize, Search
from ..run.part import Part
from ..schedule.adaptive import adaptive_regularisation, check_adaptive
from ..schedule.linear import equal_starts, linear_ratios
from ..schedule.space import LEVELS, GrowthSpace, ListedSpace, check_dimensions, growth_space
from ..schedule.stages import Regularisation, Stage
from .method import Method, average_for


@dataclass(frozen=True)
class AutoProg(Method):
    """At the start of each stage an elastic supernet finds whether, where and how much to grow, at no extra epochs.

    Attributes:
        ratio: the smallest share of each dimension in the growth space, in (0, 1]; the paper's are 0.5 and 0.4.
        stages: number of stages of equal length, at least 2; the last is the dense network.
        search_epochs: epochs of supernet training at the start of a stage, before a candidate is chosen.
        subset: training images to compare candidates on; None takes one in 25, as in the paper, and 512 at least.
        dimensions: what may be smaller: `depth`, `resolution`, `width`.
        multiple_of: of channel counts, where width is a dimension.
        recycle: weight recycling: the supernet's epochs are epochs of the run and its weights are kept. Without it
            they come on top and are thrown away (Table 6).
        depth_operator: `mogrow` (the paper's) or any other.
        decay, horizon: of the momentum network, see `Method`.
        adaptive: Adaptive Regularisation, see `Prog`.
        space: a growth space of one's own, in place of `ratio`, `dimensions` and `multiple_of`. Only candidates
            that have all of the current sub-network are considered in a stage.
        scoring: `fitted` compares the candidates by a model of all their losses (`search.fit`), measured five times in
            the second half of a search with an average of the supernet; `literal` by their losses at its end, with the
            weights as they are, as the paper has it.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    ratio: float = 0.5
    stages: int = 4
    search_epochs: int = 2
    subset: int | None = None
    dimensions: tuple[str, ...] = ("depth", "resolution")
    multiple_of: int = 1
    recycle: bool = True
    depth_operator: str | DepthOperator = "mogrow"
    decay: float | None = None
    horizon: float = 0.1
    adaptive: tuple[float, float, float] = (1.0, 1.0, 1.0)
    space: tuple[SubNetwork, ...] = ()
    scoring: str = "fitted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1 or self.stages < 2 or self.search_epochs < 1:
            raise ConfigError(
                "out of range",
                where="AutoProg",
                expected="0 < ratio <= 1, at least 2 stages and 1 epoch of search",
                found=f"ratio {self.ratio}, stages {self.stages}, search_epochs {self.search_epochs}",
            )
        if self.subset is not None and (not isinstance(self.subset, int) or self.subset < 1):
            raise ConfigError(
                "subset out of range", where="AutoProg", expected="images, 1 or more", found=f"{self.subset}"
            )
        if self.scoring not in ("fitted", "literal"):
            raise ConfigError(
                "no such scoring", where="AutoProg", expected="fitted or literal", found=f"{self.scoring!r}"
            )
        check_dimensions(self.dimensions, self.multiple_of, "AutoProg")
        check_adaptive(self.adaptive, "AutoProg")
        self.parts()

    def parts(self) -> Sequence[Part]:
        """A search in each stage but the last, from a momentum network, with regularisation that grows along."""
        search = Search(
            self.continued,
            everything=self.possible,
            depth_operator=self.depth_operator,
            recycle=self.recycle,
            subset=self.subset,
            fitted=self.scoring == "fitted",
        )
        if search.fitted:
            averages = [Average(self.decay, self.horizon)]
        else:
            averages = average_for(self.depth_operator, self.decay, self.horizon)
        return [search, *averages, Resize(), Regularise(self.regularisation)]

    def continued(self, network: Network, epochs: int, found: Sequence[SubNetwork]) -> Sequence[Stage]:
        """Each stage's supernet and the sub-network it found; the last stage is the dense network.

        A network that is whole loses no epochs to search.

        Raises:
            ConfigError: a search that leaves nothing of its stage, or nothing to search.
        """
        starts = equal_starts(epochs, self.stages)
        self._check_lengths(starts, epochs)
        space = self._space(network)
        outcomes, stages = iter(found), list[Stage]()
        current: SubNetwork | None = None
        for number, start in enumerate(starts[:-1]):
            candidates = _candidates(space, network.dense, current)
            usual = space.at(number / (self.stages - 1))
            if len(candidates) == 1:
                current = candidates[0]
                stages.append(Stage(start, current))
                continue
            searching = Stage(start, union(candidates), tuple(candidates), start + self.search_epochs, usual)
            current = next(outcomes, None)
            if current is None or self.recycle:
                stages.append(searching)
            if current is None:
                return stages
            begin = start + self.search_epochs if self.recycle else start
            if begin < starts[number + 1]:  # of a stage that is all search nothing is left
                stages.append(Stage(begin, current))
        return [*stages, Stage(starts[-1], network.dense)]

    def possible(self, network: Network) -> Sequence[SubNetwork]:
        """All of the growth space."""
        everything = [*self._space(network).candidates(), network.dense]
        return list(dict.fromkeys(everything))

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """Adaptive Regularisation (supplement, Table I; Table 7)."""
        return adaptive_regularisation(self.adaptive, self.stages, epoch, epochs)

    def _space(self, network: Network) -> GrowthSpace | ListedSpace:
        if self.space:
            for subnetwork in self.space:
                network.check(subnetwork)
            space = ListedSpace(self.space)
        else:
            ratios = linear_ratios(self.ratio, LEVELS)
            space = growth_space(
                network, ratios, self.dimensions, depth_named(self.depth_operator).table, self.multiple_of
            )
        if all(candidate == network.dense for candidate in space.candidates()):
            raise ConfigError(
                "there is nothing to search: the growth space holds the full network alone",
                where="AutoProg",
                expected="a ratio below 1, and dimensions that this model can change",
                found=f"ratio {self.ratio}, {', '.join(self.dimensions)}",
                todo="`morphogen inspect` says what of the model can change size",
            )
        return space

    def _check_lengths(self, starts: Sequence[int], epochs: int) -> None:
        """A search is over when the next stage begins; a stage may be all search (supplement, Table V).

        One whose epochs come on top may go on beyond, but not into the run's last.
        """
        shortest = min(b - a for a, b in pairwise([*starts, epochs]))
        if shortest < (self.search_epochs if self.recycle else 1) or starts[-2] + self.search_epochs >= epochs:
            raise ConfigError(
                "a search longer than its stage" if shortest else "more stages than epochs",
                where="AutoProg",
                expected=f"stages of at least {self.search_epochs} epochs",
                found=f"{epochs} epochs in {self.stages} stages, the shortest of {shortest}",
                todo="Train longer, or set fewer stages or search_epochs",
            )


def _candidates(space: GrowthSpace | ListedSpace, dense: SubNetwork, current: SubNetwork | None) -> list[SubNetwork]:
    """Lambda_k, after the sub-network of the stage before.

    The full network is among the first ones. Later it is one only where it is the next level in all dimensions: the
    last stage trains it anyway (supplement, section B), and a supernet without it is smaller.
    """
    if current is None:
        candidates = space.first()
        return candidates if dense in candidates else [*candidates, dense]
    return [dense] if current == dense else space.following(current)


@dataclass(frozen=True)
class Supernet(Method):
    """In every step of the run another sub-network of the growth space; the dense network is the result.

    The supernet-only baseline (AutoProg, Table 8; supplement, Table VI): the elastic supernet all along, no growth.

    Attributes:
        ratio, dimensions, multiple_of: of the growth space, see `AutoProg`.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.5
    dimensions: tuple[str, ...] = ("depth", "resolution")
    multiple_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ConfigError("ratio out of range", where="Supernet", expected="0 < ratio <= 1", found=f"{self.ratio}")
        check_dimensions(self.dimensions, self.multiple_of, "Supernet")

    def parts(self) -> Sequence[Part]:
        """A search that never decides."""
        return [Search(self.schedule), Resize()]

    def schedule(self, network: Network, epochs: int, found: Sequence[SubNetwork]) -> Sequence[Stage]:
        """One stage whose candidates are all of the growth space."""
        ratios = linear_ratios(self.ratio, LEVELS)
        space = growth_space(network, ratios, self.dimensions, interpolated, self.multiple_of)
        return [Stage(0, network.dense, tuple(space.candidates()))]
