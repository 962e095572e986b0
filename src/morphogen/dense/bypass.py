"""Blocks that are out: their place is held by a module that hands its input on."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..machine.private import LeafSpec, TreeSpec, tree_leaves, tree_unflatten
from .subnet import BlockStack, Structure, SubNetwork


class Bypass(nn.Module):
    """Stands where a block is out. It has no parameters and costs a function call.

    The block's place stays, so that positions, and with them the names of all other blocks, hooks, and
    feature taps by index, mean the same in every sub-network.
    """

    def __init__(self, passes: tuple[int, ...], output: TreeSpec):
        """`passes` and `output` are those of the block's `BlockStack`."""
        super().__init__()
        self.passes, self.output = passes, output
        self._single = passes[0] if isinstance(output, LeafSpec) else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block would return, made of what it is given."""
        leaves = tree_leaves((args, kwargs))
        if self._single is not None:
            return leaves[self._single]
        return tree_unflatten([None if i < 0 else leaves[i] for i in self.passes], self.output)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return "a block that is out"


def bypass(stack: BlockStack) -> Bypass:
    """A stand-in for any block of a stack."""
    return Bypass(stack.passes, stack.output)


def replace_module(tree: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of another, in the same order among its siblings; returns the other."""
    parent, _, name = path.rpartition(".")
    siblings = tree.get_submodule(parent)._modules
    old = siblings[name]
    assert old is not None
    siblings[name] = module
    return old


def take_out(tree: nn.Module, structure: Structure, target: SubNetwork) -> list[nn.Module]:
    """Replace every block that is out in a sub-network, in a tree that has all of them; returns these blocks."""
    absent = frozenset(structure.absent(target))
    return [
        replace_module(tree, path, bypass(stack))
        for stack in structure.stacks
        for path in stack.blocks
        if path in absent
    ]
