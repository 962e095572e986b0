"""Runs checks one after the other; whatever one of them does, the others run and all that was seen is on disk."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
GRACE = 15.0
"""Seconds that a check which does not stop by itself is given before its process is killed."""
BROKEN = 3
"""Exit code of a worker whose device does not answer any more; another one goes on."""


class Skipped(Exception):
    """A check that cannot run here, and why."""


class OutOfTime(Exception):
    """A check has used up its time."""


@dataclass(frozen=True)
class Check:
    """One entry of the table.

    Attributes:
        run: returns figures; anything it raises is a failure.
        budget: seconds that it may take.
        least: seconds without which it is not begun.
        cuda: whether it needs a GPU.
        repeats: it does its own resuming, and is never done.
        turn: checks of a lower one come first.
    """

    name: str
    run: Callable[[Bench], dict[str, Any] | None]
    budget: float
    least: float
    cuda: bool
    repeats: bool
    turn: int


CHECKS: dict[str, Check] = {}
"""All checks by name; they run in the order of `in_turn`."""


def check(
    name: str, budget: float = 20, *, turn: int, least: float = 5, cuda: bool = False, repeats: bool = False
) -> Callable[[Callable[[Bench], dict[str, Any] | None]], Callable[[Bench], dict[str, Any] | None]]:
    """Enter a function in the table."""

    def enter(run: Callable[[Bench], dict[str, Any] | None]) -> Callable[[Bench], dict[str, Any] | None]:
        CHECKS[name] = Check(name, run, budget, least, cuda, repeats, turn)
        return run

    return enter


def in_turn() -> list[str]:
    """The names of all checks, what is cheapest and matters most first."""
    return sorted(CHECKS, key=lambda name: CHECKS[name].turn)


class Results:
    """A file of one JSON object a line; every line is on disk when `add` returns."""

    def __init__(self, path: Path, session: str, commit: str):
        self.path, self.session, self.commit = path, session, commit
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **row: Any) -> None:
        """Append a row."""
        line = json.dumps({**row, "session": self.session, "commit": self.commit}, default=str)
        with open(self.path, "a+b") as file:
            torn = file.tell() > 0 and not self._ends_whole()
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def rows(self) -> list[dict[str, Any]]:
        """All rows; what a kill has torn is left out."""
        found = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                found.append(row)
        return found

    def done(self, device: str, toy: bool, again: bool) -> set[str]:
        """Checks that need not run: over in this session, or ok at this commit on this device."""

        def counts(row: dict[str, Any]) -> bool:
            if "check" not in row or row["status"] == "part":
                return False
            same = (row.get("commit"), row.get("device"), row.get("toy")) == (self.commit, device, toy)
            return row.get("session") == self.session or (same and row["status"] == "ok" and not again)

        return {row["check"] for row in self.rows() if counts(row)}


@dataclass
class Bench:
    """What a check is given.

    Attributes:
        device: to run on.
        toy: whether everything is to be small.
        seed: of what is random.
        deadline: of the whole, on the clock of `time.time`.
        results: where rows go.
        data: CIFAR-10, where it was given.
        figures: of the check that runs.
    """

    device: torch.device
    toy: bool
    seed: int
    deadline: float
    results: Results
    data: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    until: float = 0.0
    running: str = ""

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def kind(self) -> str:
        """The device by name."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    def left(self) -> float:
        """Seconds that the running check has left."""
        return self.until - time.time()

    def pick(self, full: Any, toy: Any) -> Any:
        """One of two sizes."""
        return toy if self.toy else full

    def note(self, **figures: Any) -> None:
        """Put figures on disk at once; they are in the check's own row too."""
        self.figures.update(figures)
        self.results.add(check=self.running, status="part", device=self.kind, toy=self.toy, figures=figures)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def broken(self) -> bool:
        """Whether the device has stopped answering: after an illegal access, nothing in this process works."""
        try:
            torch.ones(8, device=self.device).sum().item()
            self.synchronize()
        except RuntimeError:
            return True
        return False


def run_checks(bench: Bench, names: Sequence[str], marker: Path | None = None) -> bool:
    """Run checks, a row for each; returns whether the device still answers.

    Args:
        bench: what they are given.
        names: of the checks, in order.
        marker: a file that says which one runs, for whoever watches.
    """
    for name in names:
        entry, now = CHECKS[name], time.time()
        budget = min(entry.budget, bench.deadline - now)
        bench.running, bench.figures, bench.until = name, {}, now + budget
        if marker is not None:
            marker.write_text(json.dumps({"check": name, "began": now, "budget": budget}))
        status, error = "ok", None
        if budget < min(entry.least, entry.budget):
            status, error = "skipped", "no time left"
        elif entry.cuda and not bench.cuda:
            status, error = "skipped", "needs a GPU"
        else:
            status, error = _attempt(bench, entry, budget)
        seconds = round(time.time() - now, 2)
        bench.results.add(
            check=name,
            status=status,
            seconds=seconds,
            device=bench.kind,
            toy=bench.toy,
            figures=bench.figures,
            error=error,
        )
        print(f"{status:>8} {seconds:7.1f} s  {name}" + (f"  {last_line(error)}" if error else ""), flush=True)
        if bench.broken():
            return False
        _clean(bench)
    return True


def _attempt(bench: Bench, entry: Check, budget: float) -> tuple[str, str | None]:
    """Status and error of one check."""
    torch.manual_seed(bench.seed)
    try:
        with limit(budget):
            bench.figures.update(entry.run(bench) or {})
            bench.synchronize()
    except Skipped as reason:
        return "skipped", str(reason)
    except Exception:
        return "failed", without_folders(traceback.format_exc())
    return "ok", None


def _clean(bench: Bench) -> None:
    """Whatever a check has left behind."""
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)
    gc.collect()
    if bench.cuda:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread when the time is up."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: Any) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def supervise(command: Sequence[str], results: Results, marker: Path, deadline: float, device: str, toy: bool) -> None:
    """Start workers until one has come to the end; one that hangs or dies costs the check it was at.

    Args:
        command: of a worker.
        results: the file that it writes too.
        marker: where it says what it is at.
        deadline: on the clock of `time.time`.
        device, toy: of the rows that are written for it.
    """
    while time.time() < deadline:
        marker.unlink(missing_ok=True)
        began = time.time()
        worker = subprocess.Popen(command, start_new_session=True)
        try:
            why = _watch(worker, marker, began, deadline)
        finally:
            _end(worker)
        if worker.returncode == 0 and why is None:
            return
        if worker.returncode == BROKEN and why is None:
            continue
        at = _read(marker)
        if at is None:
            results.add(check="worker", status="failed", seconds=0, device=device, toy=toy, figures={}, error=str(why))
            return
        why = why or f"the process died with exit code {worker.returncode}"
        seconds = round(time.time() - at["began"], 2)
        name = at["check"]
        results.add(check=name, status="failed", seconds=seconds, device=device, toy=toy, figures={}, error=why)
        print(f"  failed {seconds:7.1f} s  {name}  {why}", flush=True)


def _watch(worker: subprocess.Popen[bytes], marker: Path, began: float, deadline: float) -> str | None:
    """Wait for a worker; says why it must be killed."""
    while worker.poll() is None:
        time.sleep(0.2)
        at, now = _read(marker), time.time()
        if at is not None and now > at["began"] + at["budget"] + GRACE:
            return f"killed after {now - at['began']:.0f} s: it did not stop by itself"
        if now > deadline + GRACE or (at is None and now > began + 120):
            return "killed at the deadline"
    return None


def _end(worker: subprocess.Popen[bytes]) -> None:
    """A worker, and the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _read(marker: Path) -> dict[str, Any] | None:
    try:
        return json.loads(marker.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def header(device: torch.device, seed: int, commit: str) -> dict[str, Any]:
    """What the figures are of."""
    import timm
    import torchvision

    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if cuda else None,
        "driver": _asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": list(torch.cuda.nccl.version()) if cuda else None,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit,
        "seed": seed,
    }


def commit() -> str:
    """Of this repository, or what COMMIT says where there is no git."""
    return os.environ.get("COMMIT") or _asked("git", "-C", str(ROOT), "rev-parse", "HEAD") or "unknown"


def _asked(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def without_folders(text: str) -> str:
    """A traceback without the folders that this machine keeps things in."""
    text = text.replace(f"{ROOT}{os.sep}", "")
    return re.sub(r'File "[^"]*?/(site-packages|dist-packages|python3[^/"]*)/', r'File "\1/', text)


def last_line(error: str) -> str:
    """What a traceback says."""
    lines = [line for line in error.strip().splitlines() if line and not line.startswith(" ")]
    return (lines or [""])[-1][:160]


def table(rows: Sequence[dict[str, Any]], session: str) -> str:
    """The last word on each check, and under it what it measured."""
    latest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "check" in row and row["status"] != "part" and (row["session"] == session or row["check"] not in latest):
            latest[row["check"]] = row
    lines = [f"{'check':<34} {'status':<8} {'seconds':>8}  figures"]
    for name, row in latest.items():
        figures = row.get("figures") or {}
        plain = {key: value for key, value in figures.items() if not isinstance(value, (list, dict))}
        told = last_line(row["error"]) if row.get("error") else ", ".join(f"{k} {short(v)}" for k, v in plain.items())
        lines.append(f"{name:<34} {row['status']:<8} {row['seconds']:8.1f}  {told}")
    for name, row in latest.items():
        for title, value in (row.get("figures") or {}).items():
            if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
                lines += ["", f"{name}: {title}", *columns(value)]
    count = {status: sum(row["status"] == status for row in latest.values()) for status in ("ok", "failed", "skipped")}
    return "\n".join([*lines, "", ", ".join(f"{number} {status}" for status, number in count.items())])


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows under each other."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([short(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def short(value: Any) -> str:
    """A figure as one reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def worker_command(arguments: Sequence[str], session: str, deadline: float) -> list[str]:
    """How a worker is started."""
    script = str(ROOT / "benchmarks" / "gpu.py")
    return [sys.executable, script, *arguments, "--worker", session, "--until", str(deadline)]
