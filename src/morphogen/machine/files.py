"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import ConfigError, ExportError, first_line


def writable(folder: Path) -> None:
    """Make a folder for results, before anything is trained; raises ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part").touch()
        (folder / ".part").unlink(missing_ok=True)  # another rank may have been faster
    except OSError as error:
        raise ConfigError(f"cannot write results there ({first_line(error)})", where=str(folder)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `replaced`."""
    with replaced(path) as file:
        file.write(text.encode())


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` when it is whole; what was there stays until then.

    Raises:
        ExportError: it cannot be written; nothing is left of it. Or a device or a pipe is there, which would be lost.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ExportError("cannot write the file there", where=str(path), expected="a file, or nothing yet")
    aside = path.with_name(f".{path.name}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # what torch.save makes of a full disk
        raise ExportError(f"cannot write the file ({first_line(error)})", where=str(path)) from error
    finally:
        if aside.is_file():
            aside.unlink()
