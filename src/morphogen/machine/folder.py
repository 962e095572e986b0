"""A folder that is written to has one owner at a time, and a process that is gone owns nothing.

The system's lock (`flock`) ends with the process that holds it, whatever ends it. Some network file systems have none,
or keep it to one machine. There the lock's file tells: its owner touches it every few seconds, and one of another
machine, or without a lock, counts as gone when it has not been touched for a while. The clocks of machines are not
compared. What such an owner does not bear is to be held up for longer than that while another process comes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigError, first_line
from .files import writable
from .ranks import decided_by_first

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

NAME = ".owner"
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 30.0
"""Seconds without one after which an owner that no lock tells of is gone; a network file system may hold them back."""
SETTLING = 2.0
"""Seconds in which processes that have found the same owner gone see each other, where there is no lock."""

_held = set[int]()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make a folder and own it; what was made and is empty at the end goes again. Of several ranks the first owns it.

    Raises:
        ConfigError: another process owns it, or it cannot be written to; on every rank.
    """
    owners: list[_Owner] = []  # of one, on rank 0
    decided_by_first(lambda: owners.append(_Owner(folder)))
    try:
        yield
    finally:
        for owner in owners:
            owner.leave()


class _Owner:
    """This process, as long as it owns a folder."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._made = [place for place in (folder, *folder.parents) if not place.exists()]
        self._note = json.dumps({"machine": _machine(), "process": os.getpid(), "mark": uuid.uuid4().hex})
        try:
            writable(folder)
            while not self._take():
                pass
        except OSError as error:
            raise ConfigError(f"cannot be written to ({first_line(error)})", where=str(folder)) from error
        _held.add(self._file)
        self._over = threading.Event()
        threading.Thread(target=self._live, name="owner of a folder", daemon=True).start()

    def _take(self) -> bool:
        """Try to own it; False where its owner left meanwhile, and one has to try again.

        Raises:
            ConfigError: another process owns it.
        """
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = self._lock()
            before = _read(self.path)
            if before is None or not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                raise FileNotFoundError
            if before[0] and not (locked and _told(before[0], "machine") == _machine()):
                self._see_that_it_is_gone(before)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, self._note.encode(), 0)
            os.fsync(self._file)
            if not locked:
                time.sleep(SETTLING)
                self._refuse_others()
        except FileNotFoundError:
            os.close(self._file)
            return False
        except BaseException:
            os.close(self._file)
            raise
        return True

    def _lock(self) -> bool:
        """Whether the system has a lock here; raises ConfigError where another process has it."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal() from None
        except OSError:
            return False
        return True

    def _see_that_it_is_gone(self, before: tuple[str, int]) -> None:
        who = _who(before[0])
        warnings.warn(
            f"{self.path.parent}: {who} wrote there last; waiting {SILENCE:g} s for a sign of it", stacklevel=2
        )
        until = time.monotonic() + SILENCE
        while time.monotonic() < until:
            time.sleep(min(1.0, SILENCE / 10))
            now = _read(self.path)
            if now is None:
                raise FileNotFoundError
            if now != before:
                raise self._refusal()

    def _refuse_others(self) -> None:
        now = _read(self.path)
        if now is None or now[0] != self._note:
            raise self._refusal()

    def _refusal(self) -> ConfigError:
        """Of a folder that is another's."""
        now = _read(self.path)
        return ConfigError(
            "another process is writing there",
            where=str(self.path.parent),
            found=_who(now[0] if now else ""),
            todo="Wait for its end or stop it, or choose another folder with --output",
        )

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):
                os.utime(self._file if os.utime in os.supports_fd else self.path)

    def leave(self) -> None:
        """Own it no longer."""
        self._over.set()
        with suppress(OSError):
            now = _read(self.path)
            if now is not None and now[0] == self._note:  # not taken over while this process was held up
                self.path.unlink()
        _held.discard(self._file)
        os.close(self._file)
        with suppress(OSError):
            for place in self._made:
                place.rmdir()


def _forked() -> None:
    """A process that is forked owns nothing, and must not keep the lock of one that is gone."""
    for file in _held:
        with suppress(OSError):
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _read(path: Path) -> tuple[str, int] | None:
    """An owner's note, and when it was last touched; opened anew, so that network file systems ask the server."""
    try:
        with open(path) as file:
            return file.read(1000), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _machine() -> str:
    """This machine since its start: what ran before is gone."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()


def _told(note: str, key: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return f"{json.loads(note)[key]}"
    return ""


def _who(note: str) -> str:
    machine, process = _told(note, "machine").split(" ")[0], _told(note, "process")
    return f"process {process} on {machine}" if process else "a process that has not given its name"
