"""A step of a run: what the parts do in it, in order."""

from __future__ import annotations

from typing import Any

import torch

from .assembly import Assembly
from .ending import Ending
from .images import nearest
from .part import Call
from .watch import Watch


class Steps:
    """The steps of one run: hooks take them, or, with `hooks=False`, the loop by way of the run."""

    def __init__(self, assembly: Assembly, watch: Watch, ending: Ending):
        self._assembly, self._watch, self._ending = assembly, watch, ending

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Call:
        """The arguments of a forward pass, as all parts in order would have them."""
        if training:
            self._watch.begins_step()
        for part in self._assembly:
            args, kwargs = part.before_forward(args, kwargs, training)
        return args, kwargs

    def after_forward(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a forward pass, as all parts in order would have it."""
        for part in self._assembly:
            output = part.after_forward(output, args, kwargs)
        return output

    def begins(self) -> None:
        """Raise ConfigError where no epoch has begun."""
        self._watch.begins_step()

    def before(self) -> None:
        """An optimizer is about to step; raises ConfigError where the loop has left something out."""
        self._watch.begins_step()
        for part in self._assembly:
            part.before_step()

    def after(self, told: int | None) -> None:
        """All optimizers have stepped; `told` is how many steps the epoch should have."""
        for part in self._assembly:
            part.end_step()
        self._watch.took_step(told)
        self._ending.after_step()

    def resized(self, images: torch.Tensor | None) -> torch.Tensor | None:
        """See `Run.begin_step`."""
        return self.before_forward((images,), {}, training=True)[0][0]

    @staticmethod
    def targets(targets: tuple[torch.Tensor, ...], images: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Maps at the size of the images."""
        return targets if images is None else tuple(nearest(each, images.shape[-2:]) for each in targets)
