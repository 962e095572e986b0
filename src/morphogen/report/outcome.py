"""What a finished run says of its schedule: the file for `Retrain`, and the speedup that its searches foretold."""

from __future__ import annotations

from dataclasses import astuple

from ..parts import Average, Prune, Resize, Search
from ..run.run import Run
from ..schedule.saved import SavedSchedule, found_stages


def saved_schedule(run: Run) -> SavedSchedule | None:
    """The schedule of a run, what was searched as if it had been known.

    None for a supernet that never chose, for a run that was stopped in a search, and for one that pruned: what it left
    out was read off its own weights.
    """
    if run.part(Prune) is not None or any(stage.candidates and stage.choose_at is None for stage in run.stages):
        return None
    average, resize = run.part(Average) or Average(), run.part(Resize) or Resize()
    settings = {
        "operator": _name(run.assembly.operator),
        "depth_operator": _name(run.assembly.depth_operator),
        "decay": average.momentum.decay,
        "horizon": average.momentum.horizon,
        "resizing": resize.kind,
    }
    strengths = [astuple(run.regularisation(epoch)) for epoch in range(run.epochs)]
    search = run.part(Search)
    found = [] if search is None or not search.recycle else [each.subnetwork for each in search.searches]
    stages = found_stages(run.stages, found)
    if not stages or stages[-1][1] != run.network.dense:
        return None
    return SavedSchedule(run.epochs, stages, settings, tuple(strengths))


def predicted_speedup(run: Run) -> float | None:
    """Dense time by a finished run's, from the step times of its searches; None where they do not tell.

    Each sub-network's time is a share of the dense network's, which the first search has measured; the times of a later
    search are tied to it by the sub-networks that both have. Data, morphs and the comparing of candidates are left out.
    """
    search, shares = run.part(Search), {run.network.dense: 1.0}
    if search is None or not search.searches:
        return None
    for found in search.searches:
        both = [c for c in found.candidates if c.subnetwork in shares]
        if not both:
            return None
        dense = sum(c.seconds for c in both) / sum(shares[c.subnetwork] for c in both)
        shares |= {c.subnetwork: c.seconds / dense for c in found.candidates}
    total = 0.0
    for stage, end in zip(run.stages, [*(s.start for s in run.stages[1:]), run.epochs], strict=True):
        parts = stage.candidates or (stage.subnetwork,)
        if any(part not in shares for part in parts):
            return None
        total += (end - stage.start) * sum(shares[part] for part in parts) / len(parts)
    for found in [] if search.recycle else search.searches:
        total += found.epochs * sum(shares[c.subnetwork] for c in found.candidates) / len(found.candidates)
    return run.epochs / total


def _name(operator: object) -> str:
    """Functions of the user's own go by their names."""
    return str(getattr(operator, "__name__", operator))
