"""Blocks that are out: their place is held by a module that hands its input on, or zeros where the caller adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..machine.private import LeafSpec, tree_leaves, tree_unflatten
from .subnet import HandsOn, Structure, SubNetwork


class Bypass(nn.Module):
    """Stands where a block is out. It has no parameters and costs a function call.

    The block's place stays, so that positions, and with them the names of all other blocks, hooks, and
    feature taps by index, mean the same in every sub-network.
    """

    def __init__(self, hands_on: HandsOn):
        """`hands_on` is that of the block in its `BlockStack`."""
        super().__init__()
        self.hands_on = hands_on
        self._single = hands_on.passes[0] if isinstance(hands_on.output, LeafSpec) else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block would return, made of what it is given."""
        leaves = tree_leaves((args, kwargs))
        if self._single is not None:
            return self._made(leaves[self._single])
        passes = self.hands_on.passes
        return tree_unflatten([None if i < 0 else self._made(leaves[i]) for i in passes], self.hands_on.output)

    def _made(self, leaf: Any) -> Any:
        return torch.zeros_like(leaf) if self.hands_on.zero and isinstance(leaf, torch.Tensor) else leaf

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return "a block that is out"


def replace_module(tree: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of another, in the same order among its siblings, and in the lists and dictionaries in
    which the parent holds it, too (`self.add_module(f"block{i}", block); self.blocks.append(block)`).

    Returns:
        The other.
    """
    parent, _, name = path.rpartition(".")
    holder = tree.get_submodule(parent)
    old = holder._modules[name]
    assert old is not None
    holder._modules[name] = module
    for value in vars(holder).values():
        if value is holder._modules:
            continue
        places = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
        for place in [place for place, held in places if held is old]:
            value[place] = module
    return old


def take_out(tree: nn.Module, structure: Structure, target: SubNetwork) -> list[nn.Module]:
    """Replace every block that is out in a sub-network, in a tree that has all of them; returns these blocks."""
    absent = frozenset(structure.absent(target))
    return [
        replace_module(tree, path, Bypass(hands_on))
        for stack in structure.stacks
        for path, hands_on in stack.places
        if path in absent
    ]
