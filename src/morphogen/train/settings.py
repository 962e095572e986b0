"""YAML as the command line reads it: settings alone, of a bounded size.

A file that is given with `--config` is its user's own, like the command itself: the model that it names may be code of
one's own. All else in it is data: PyYAML's safe loader makes no objects, and no setting is a class for jsonargparse to
import.
"""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from ..machine.reading import DEEPEST

MODE = "settings"
"""The name by which a parser asks for this loader (`parser_mode`)."""

MOST = 1_000_000
"""Characters of a file."""


def load(text: str) -> Any:
    """What jsonargparse's own loader makes of YAML.

    Raises:
        ValueError: it is too large, too deep, or repeats a part by an anchor, of which a few lines make gigabytes.
        yaml.YAMLError: it is no YAML.
    """
    if len(text) > MOST:
        raise ValueError(f"more than {MOST:,} characters of settings")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"lists and dictionaries more than {DEEPEST} deep inside each other")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"*{event.anchor} repeats another part; write it out")
    return get_loader("yaml")(text)


set_loader(MODE, load, exceptions=(yaml.YAMLError, ValueError))
