"""What went wrong, where, what was expected, what was found, and what to do next."""

from __future__ import annotations

LONGEST = 4000
"""Characters of a message."""


class MorphogenError(Exception):
    """Base of every error Morphogen raises on purpose; its text is one line a user can act on."""

    def __init__(self, what: str, *, where: str = "", expected: str = "", found: str = "", todo: str = ""):
        self.where = where
        text = f"{where}: {what}" if where else what
        if expected:
            text += f"; expected {expected}"
        if found:
            text += f"{',' if expected else ';'} found {found}"
        if todo:
            text += f". {todo}"
        # What was found may be long, and have line breaks and a terminal's commands in it.
        text = "".join(each if each.isprintable() else " " for each in text)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


class TraceError(MorphogenError):
    """The model could not be read: it cannot be exported or copied."""


class SubNetworkError(MorphogenError):
    """A sub-network that does not fit the dense network it is meant for."""


class MorphError(MorphogenError):
    """A morph that was refused; nothing was changed."""


class ConfigError(MorphogenError):
    """A setting that cannot be used: an unknown name, a value out of range, a missing folder."""


class TrainingError(MorphogenError):
    """Training could not go on, such as a loss that is not finite."""


class DivergedError(TrainingError):
    """The loss is not finite."""


class CheckpointError(MorphogenError):
    """A checkpoint that is damaged, or of another run than the one it was to bring back; nothing was changed."""


class ExportError(MorphogenError):
    """A trained network that cannot be written to a file, or a file that cannot be loaded onto a model."""


def first_line(error: BaseException) -> str:
    """Kind and first line of an error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500] if lines else 'no message'}"
