"""What a finished run says of its schedule: the file for `Retrain`, and the speedup that its searches foretold."""

from __future__ import annotations

from dataclasses import astuple

from ..attach import Attached
from ..schedule.saved import SETTINGS, SavedSchedule, found_stages


def saved_schedule(run: Attached) -> SavedSchedule | None:
    """The schedule of a run, what was searched as if it had been known.

    None for a supernet that never chose, and for a run that pruned: what it left out was read off its own weights.
    """
    if run.pruner is not None or any(stage.candidates and stage.choose_at is None for stage in run.stages):
        return None
    settings = {name: getattr(run.method, name) for name in SETTINGS}
    for name in ("operator", "depth_operator"):  # functions of the user's own go by their names
        settings[name] = getattr(settings[name], "__name__", settings[name])
    strengths = [astuple(run.regularisation(epoch)) for epoch in range(run.epochs)]
    return SavedSchedule(run.epochs, found_stages(run.stages), settings, tuple(strengths))


def predicted_speedup(run: Attached) -> float | None:
    """Dense time by a finished run's, from the step times of its searches; None where they do not tell.

    Each sub-network's time is a share of the dense network's in the same search. Data, morphs and the comparing of
    candidates are left out.
    """
    shares = {}
    for found in run.searches:
        dense = next((c.seconds for c in found.candidates if c.subnetwork == run.network.dense), None)
        shares |= {c.subnetwork: c.seconds / dense for c in found.candidates if dense}
    total = 0.0
    for stage, end in zip(run.stages, [*(s.start for s in run.stages[1:]), run.epochs], strict=True):
        parts = stage.candidates or (stage.subnetwork,)
        if any(part not in shares for part in parts):
            return None
        total += (end - stage.start) * sum(shares[part] for part in parts) / len(parts)
    for found in run.searches if not run.method.recycle else ():
        total += found.epochs * sum(shares[c.subnetwork] for c in found.candidates) / len(found.candidates)
    return run.epochs / total
