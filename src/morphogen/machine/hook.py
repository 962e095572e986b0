"""A hook on a module or an optimizer that copies share and files leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.hooks import RemovableHandle

from .private import unwrapped


def take_off(handles: Sequence[RemovableHandle]) -> None:
    """Remove hooks. One with another behind it stays, and does nothing: PyTorch may be going through them just now."""
    for handle in reversed(handles):
        hooks = handle.hooks_dict_ref()
        if not hooks or handle.id not in hooks:
            continue
        if next(reversed(hooks)) == handle.id:
            handle.remove()
        else:
            unwrapped(hooks[handle.id]).forget()


class Hook:
    """A function on a model or an optimizer. Copies of the model share it; a file of the whole model leaves it out.

    Attributes:
        owner: whose hook it is; None for one that comes out of a file.
    """

    def __init__(
        self,
        act: Callable[..., Any] | None,
        owner: object = None,
        copied: Callable[[Any], None] = lambda memo: None,
    ):
        """`copied` is told of every deep copy that the hook is part of, by `deepcopy`'s memo."""
        self._act, self.owner, self._copied = act, owner, copied

    def forget(self) -> None:
        """Do nothing from here on."""
        self._act, self.owner, self._copied = None, None, lambda memo: None

    def __call__(self, *args: Any) -> Any:
        """What the function does; nothing, where the hook comes out of a file."""
        return None if self._act is None else self._act(*args)

    def __deepcopy__(self, memo: Any) -> Hook:
        self._copied(memo)
        return self

    def __reduce__(self) -> Any:
        return Hook, (None,)
