"""How far a proximal step of the group lasso goes, in the units of an optimizer's own step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.optim import Optimizer

from ..errors import ConfigError
from .lasso import Step

SECOND_MOMENTS = ("exp_avg_sq", "square_avg")
"""Under these names the Adam family and RMSprop keep the average of squared gradients."""

ADAPTIVE = ("betas", "centered")
"""Settings by which those optimizers are known before they have any state."""

UNKNOWN = ("rho", "beta2_decay", "initial_accumulator_value", "etas")
"""Settings of Adadelta, Adafactor, Adagrad and Rprop, whose steps are scaled in other ways."""


def check_known(optimizers: Sequence[Optimizer]) -> None:
    """Raise ConfigError for optimizers whose steps `proximal_steps` does not know."""
    for optimizer in optimizers:
        if any(key in group for group in optimizer.param_groups for key in UNKNOWN):
            raise _unknown(optimizer)


def _unknown(optimizer: Optimizer) -> ConfigError:
    return ConfigError(
        "a proximal step has to know how long the optimizer's own steps are",
        where=type(optimizer).__name__,
        expected="SGD, RMSprop, or Adam and its relatives, which divide by the root of a second moment",
        todo="Use one of these, or the penalty in the loss (proximal=False)",
    )


def proximal_steps(
    weights: Mapping[str, torch.Tensor], optimizers: Sequence[Optimizer], coefficient: float
) -> dict[str, Step]:
    """By how much to shrink the norms of each weight's channels after an optimizer step.

    As much as the penalty's gradient would move them in the long run, were it in the loss: the learning rate times the
    coefficient, by 1 - momentum where there is one, by the root of the averaged squared gradient where the optimizer
    divides by that (an adaptive proximal step; Yun, Lozano and Yang, Adaptive proximal gradient methods, NeurIPS 2021).
    The average has the loss's gradient alone, so the penalty's own is added: no entry moves by more than the learning
    rate, as under the optimizer. Otherwise weights that the loss hardly moves yet, as behind the small first weights of
    a detector's heads, would be gone after a few steps whatever the coefficient.
    That root is taken to be no smaller than its mean over all weights: what has next to no gradient yet, because what
    follows it begins at zero or is scaled by 1e-6, would otherwise be gone after the first step.

    Args:
        weights: parameters by name.
        optimizers: that train them; a weight that none trains stays as it is.
        coefficient: lambda of the penalty.

    Raises:
        ConfigError: an optimizer turns out to keep no second moments where its kin do.
    """
    names = {id(weight): name for name, weight in weights.items()}
    steps = dict.fromkeys(weights, Step(0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in names:
                    steps[names[id(parameter)]] = _step(optimizer, group, parameter, coefficient)
    scales = [step.scale for step in steps.values() if step.scale is not None]
    if not scales:
        return steps
    least = torch.stack([scale.sum() for scale in scales]).sum() / sum(scale.numel() for scale in scales)
    return {
        name: step if step.scale is None else replace(step, scale=step.scale.clamp(min=least))
        for name, step in steps.items()
    }


def _step(optimizer: Optimizer, group: Mapping, parameter: torch.Tensor, coefficient: float) -> Step:
    state = optimizer.state.get(parameter, {})
    length = float(group["lr"]) * coefficient
    moment = next((state[name] for name in SECOND_MOMENTS if name in state), None)
    momentum = float(group.get("momentum", 0.0))
    if momentum:
        length *= (1 - float(group.get("dampening", 0.0))) / (1 - momentum)
    if moment is None:
        if state and any(key in group for key in ADAPTIVE):
            raise _unknown(optimizer)
        return Step(length)
    # In the loss the penalty's gradient would be in the average too: w / norm, of mean square 1 / entries of a channel.
    own = coefficient**2 * parameter.shape[0] / parameter.numel()
    # The count may be a tensor on a GPU, which is not waited for.
    bias = 1 - group["betas"][1] ** state["step"] if "betas" in group and "step" in state else 1.0
    return Step(length, (moment / bias).add_(own).sqrt_().add_(group.get("eps", 1e-8)))
