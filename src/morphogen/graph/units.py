"""From what rules say to units: the slots that can leave only together, and those that hang on several of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from .slots import ALWAYS, Product, Slots


@dataclass(frozen=True)
class Units:
    """The units of all slots.

    Attributes:
        of: for each slot the smallest slot it is tied to, which names its unit.
        factors: for each unit the units that must all be alive for it to be, sorted, filled up with ALWAYS on the
            left: of most units themselves, of a product its factors, of a fixed one none.
        reasons: why units are always alive; the first reason given, empty for what is fixed by nature (padding).
    """

    of: torch.Tensor
    factors: torch.Tensor
    reasons: dict[int, str]


def solve(slots: Slots) -> Units:
    """Draw all conclusions: ties are transitive, products with one free factor are that factor, and a slot that is a
    product in two ways ties the factors of both, or, where the two do not match, fixes them."""
    while True:
        of = _components(slots)
        fixed = torch.zeros(slots.count, dtype=torch.bool)
        fixed[ALWAYS] = True
        for axis, _ in slots.fixed:
            fixed[of[axis]] = True
        rows = [_Rows(product, of, fixed) for product in slots.products]
        # (not a generator: every product draws its conclusions in every round)
        if any([row.conclude(slots) for row in rows]):
            continue
        factors, clash = _expanded(slots.count, fixed, rows)
        for each in clash:
            _settle(slots, each)
        if not clash:
            unlike = _unlike(slots, of, factors)
            if not unlike:
                return Units(of, factors, _reasons(slots, of))
            slots.ties += unlike


class _Rows:
    """A product in terms of units."""

    def __init__(self, product: Product, of: torch.Tensor, fixed: torch.Tensor):
        self.product = product
        self.whole = of[product.whole]
        columns = torch.stack([of[factor] for factor in product.factors], dim=1)
        self.factors = _as_sets(torch.where(fixed[columns], ALWAYS, columns))
        self.whole_fixed = fixed[self.whole]
        self.free = (self.factors != ALWAYS).sum(1)

    def conclude(self, slots: Slots) -> bool:
        """Add what follows for slots from what is fixed; returns whether that is anything new."""
        known = len(slots.fixed) + len(slots.ties)
        must = self.whole_fixed & (self.free > 0)
        if must.any():
            needed = self.factors[must]
            slots.fix(needed[needed != ALWAYS].unique(), "part of an axis that stays whole elsewhere")
        none = ~self.whole_fixed & (self.free == 0)
        if none.any():
            slots.fix(self.whole[none], "made of axes that stay whole")
        one = ~self.whole_fixed & (self.free == 1) & (self.factors[:, -1] != self.whole)
        if one.any():
            slots.tie(self.whole[one], self.factors[one, -1], "")
        return len(slots.fixed) + len(slots.ties) > known

    @property
    def open(self) -> torch.Tensor:
        """Which rows really are products."""
        return (self.free > 1) & ~self.whole_fixed


def _as_sets(rows: torch.Tensor) -> torch.Tensor:
    """Each row sorted, doubles replaced by ALWAYS."""
    rows = rows.sort(dim=1).values
    doubles = rows[:, 1:] == rows[:, :-1]
    rows[:, 1:][doubles] = ALWAYS
    return rows.sort(dim=1).values


@dataclass(frozen=True)
class _Clash:
    """Rows of two products that say different things of the same units."""

    one: Product
    rows: torch.Tensor
    other: Product
    their_rows: torch.Tensor


def _expanded(count: int, fixed: torch.Tensor, rows: list[_Rows]) -> tuple[torch.Tensor, list[_Clash]]:
    """The factors of every unit, products of products resolved; and what contradicts it."""
    factors = torch.where(fixed, ALWAYS, torch.arange(count))[:, None]
    rows = [row for row in rows if bool(row.open.any())]
    if not rows:
        return factors, []
    width = max(row.factors.shape[1] for row in rows)
    whole = torch.cat([row.whole[row.open] for row in rows])
    parts = torch.cat([pad(row.factors[row.open], (width - row.factors.shape[1], 0)) for row in rows])
    product = torch.cat([torch.full((int(row.open.sum()),), i) for i, row in enumerate(rows)])
    position = torch.cat([row.open.nonzero().flatten() for row in rows])
    # The first row of each unit defines it.
    units, which = whole.unique(return_inverse=True)
    first = torch.full((len(units),), len(whole)).scatter_reduce(0, which, torch.arange(len(whole)), "amin")
    defined, clash = parts[first], torch.zeros(len(whole), dtype=torch.bool)
    for _ in range(8):
        factors = pad(factors[:, -1:], (defined.shape[1] - 1, 0))
        factors[units] = defined
        deeper = _trimmed(_as_sets(factors[defined].flatten(1)))
        if deeper.shape == defined.shape and torch.equal(deeper, defined):
            mine, theirs = _same_width(_as_sets(factors[parts].flatten(1)), defined[which])
            clash = (mine != theirs).any(1)
            break
        defined = deeper
    else:  # a product of itself
        clash = torch.ones_like(clash)
    pairs = torch.stack([product, product[first[which]]], dim=1)
    found = []
    for i, j in pairs[clash].unique(dim=0).tolist():
        these = clash & (product == i) & (pairs[:, 1] == j)
        found.append(_Clash(rows[i].product, position[these], rows[j].product, position[first[which[these]]]))
    return factors, found


def _trimmed(rows: torch.Tensor) -> torch.Tensor:
    """Without the columns on the left that are ALWAYS in all rows; one column stays."""
    used = (rows != ALWAYS).any(0).nonzero().flatten()
    return rows[:, int(used[0]) if len(used) else -1 :]


def _same_width(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(left.shape[1], right.shape[1])
    return pad(left, (width - left.shape[1], 0)), pad(right, (width - right.shape[1], 0))


def _settle(slots: Slots, clash: _Clash) -> None:
    """Make what two products say of the same units agree.

    Two of the same sizes have the same factors. One that says two things of a unit (all positions of a head have been
    tied to each other) keeps the factor that both have. Otherwise all factors are fixed.
    """
    one, other = clash.one, clash.other
    if one is other:
        for factor in one.factors:
            mine, theirs = factor[clash.rows], factor[clash.their_rows]
            slots.fix(torch.cat([mine[mine != theirs], theirs[mine != theirs]]), "its positions are tied to each other")
    elif one.sizes == other.sizes:
        for mine, theirs in zip(one.factors, other.factors, strict=True):
            slots.tie(mine[clash.rows], theirs[clash.their_rows], "")
    else:
        for product, rows in ((one, clash.rows), (other, clash.their_rows)):
            for factor in product.factors:
                slots.fix(factor[rows], "views cut the same axis in two ways that do not match")


def _unlike(slots: Slots, of: torch.Tensor, factors: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs of axes that must be of one size, and consist of other units."""
    if not slots.alike:
        return []
    _, unit = factors[of].unique(dim=0, return_inverse=True)
    return [(a, b) for a, b in slots.alike if not torch.equal(unit[a].sort().values, unit[b].sort().values)]


def _reasons(slots: Slots, of: torch.Tensor) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for axis, reason in slots.fixed:
        for unit in of[axis].unique().tolist():
            reasons[unit] = reasons.get(unit) or reason
    reasons.setdefault(ALWAYS, "")
    return reasons


def _components(slots: Slots) -> torch.Tensor:
    """Smallest member of each connected component, by hooking roots and pointer jumping."""
    root = torch.arange(slots.count)
    if not slots.ties:
        return root
    a, b = torch.cat([left for left, _ in slots.ties]), torch.cat([right for _, right in slots.ties])
    while True:
        root_a, root_b = root[a], root[b]
        if torch.equal(root_a, root_b):
            return root
        low, high = torch.minimum(root_a, root_b), torch.maximum(root_a, root_b)
        root.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(root, root[root]):
            root = root[root]
