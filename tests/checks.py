"""Shared checks of design invariants; `test_checks.py` shows that each can fail."""

from __future__ import annotations

import torch
from torch import nn

import morphogen
from morphogen.morph.tensors import map_tensors


def randomise_statistics(model: nn.Module) -> None:
    """Running statistics as after training, so that forgetting to carry them shows."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


def perturb(model: nn.Module) -> None:
    """Weights and statistics as after training: no zeros, no ones, no layer scale of 1e-6 that hides a branch."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    randomise_statistics(model)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, example, steps: int = 2, run=None) -> None:
    """A few training steps with random targets, so that every state is there; with a run, its penalty too."""
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(example)
        loss = (output * torch.randn_like(output)).sum()
        (loss if run is None else run.penalised(loss.abs())).backward()
        optimizer.step()


def assert_equals_masked_dense(net: morphogen.Network, target: morphogen.SubNetwork, example, tolerance=1e-5) -> None:
    """Morph to `target`: outputs equal those of the masked dense network (invariant 3)."""
    net.model.eval()
    with torch.no_grad():
        expected = morphogen.masked_dense(net, target)(example)
        morphogen.morph(net, target)
        torch.testing.assert_close(net.model(example), expected, rtol=tolerance, atol=tolerance)


def assert_function_preserved(net: morphogen.Network, target, example, operator, tolerance=1e-10, **others) -> None:
    """Growing to `target` by `operator` leaves the output as it was, in evaluation mode."""
    net.model.eval()
    with torch.no_grad():
        before = net.model(example)
        morphogen.morph(net, target, operator=operator, **others)
        torch.testing.assert_close(net.model(example), before, rtol=tolerance, atol=tolerance)


def assert_optimizer_holds_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every trainable parameter is in exactly one group, and nothing else is (invariant 1)."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                assert value.shape == parameter.shape, key


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, torch.Tensor]:
    """All weights, buffers, gradients and moments by name."""
    result = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            result[f"{name}/grad"] = parameter.grad.clone()
        for key, value in (optimizer.state.get(parameter, {}) if optimizer else {}).items():
            result[f"{name}/{key}"] = torch.as_tensor(value).clone()
    return result


def assert_same(before, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Weights, buffers, gradients, moments and groups are those of the snapshot."""
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    if optimizer is not None:
        assert_optimizer_holds_model(model, optimizer)


def assert_unchanged(net: morphogen.Network, before, current: morphogen.SubNetwork, optimizer=None) -> None:
    """A refused morph has changed nothing: weights, buffers, gradients, moments, groups, what is alive."""
    assert net.current == current
    assert_same(before, net.model, optimizer)


def names_in_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters in each group of an optimizer, in their order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def assert_survivors_equal(
    net, before, old: morphogen.SubNetwork, new: morphogen.SubNetwork, after, *, rescaled=False
) -> None:
    """Whatever is alive in both sub-networks is bitwise the same in both snapshots (invariant 1).

    With `rescaled`, the weights of an input may all have been divided by the same whole number; nothing else may.

    Works from the layouts alone, by dense position, so that it shares no index map with the morph.
    """
    mask_old, mask_new = net.structure.alive_mask(old), net.structure.alive_mask(new)
    there, then = net.structure.present(old), net.structure.present(new)
    changed = map_tensors(net, old, new)
    # Masks and index tables of the token grid are made anew, and may be missing.
    anew = set() if old.resolution == new.resolution else {*net.grids.buffers(old.resolution)}
    names = {key.partition("/")[0] for key in after if ".rezero" not in key}
    assert names | anew & set(then) == set(then)
    for key, value in before.items():
        name = key.partition("/")[0]
        assert name in there, key
        if name not in then or name in anew or (name in changed and changed[name].regrids):
            continue
        if name not in changed or value.ndim == 0:
            assert torch.equal(value, after[key]), key
            continue
        left, right = value, after[key]
        for dim, axis in enumerate(net.structure.tensors[name].axes):
            if axis is not None:
                both = mask_old[axis] & mask_new[axis]
                left = left.index_select(dim, both[mask_old[axis]].nonzero().flatten())
                right = right.index_select(dim, both[mask_new[axis]].nonzero().flatten())
        role = net.structure.tensors[name].role
        if rescaled and name == key and role.kind == "weight" and not role.blockwise:
            front = tuple(range(len(role.ins)))
            left, right = (each.movedim(role.ins, front).flatten(0, len(front) - 1) for each in (left, right))
            left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
            parts = (left.norm(dim=1, keepdim=True) / right.norm(dim=1, keepdim=True)).round()
            assert (parts >= 1).all(), key
            right = right if (parts == 1).all() else right * parts
            torch.testing.assert_close(left, right, rtol=1e-6, atol=0)
            continue
        assert torch.equal(left, right), key


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])
