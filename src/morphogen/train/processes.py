"""Runs beside each other, each in a process of its own: for their accuracy, not for their time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pickle import UnpicklingError
from typing import Any

import torch

from ..errors import MorphogenError
from .checkpoint import Stopped, listening
from .config import CompareConfig
from .finished import Finished
from .sources import load_data
from .turns import PlannedRun, Progress, Resumable

PATIENCE = 20.0
"""Seconds that a process gets to end itself when its run is over."""


@dataclass
class Worker:
    """A process that trains one run.

    Attributes:
        said: its last word, where it has come: `finished` or `failed`.
    """

    planned: PlannedRun
    process: ForkServerProcess
    connection: Any
    said: str = ""

    def messages(self) -> Iterator[tuple[str, Any]]:
        """What it has sent; a process that is killed may have cut off the last."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError, UnpicklingError):
            self.connection.close()

    @property
    def sources(self) -> list[Any]:
        """What tells that it has sent something, or is gone; processes of its own may hold its end of the pipe."""
        return [self.process.sentinel] if self.connection.closed else [self.connection, self.process.sentinel]

    def stop(self) -> None:
        """Ask it to save and to end, also where it is held up (SIGSTOP)."""
        self.process.terminate()
        if self.process.pid is not None:
            with suppress(OSError):
                os.kill(self.process.pid, signal.SIGCONT)

    def ended(self) -> bool:
        """Whether it is gone, which it must be soon after its last word."""
        if self.said:
            self.process.join(PATIENCE)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
        return not self.process.is_alive()


def side_by_side(
    plans: Sequence[PlannedRun], config: CompareConfig, finished: Finished, progress: Progress
) -> list[str]:
    """Train `config.parallel` at a time until all are over; returns what went wrong with any. A run whose process is
    killed by another (as where memory runs out) goes on from its checkpoint once.

    Raises:
        Stopped: asked to; every run at work has saved a checkpoint.
    """
    waiting, going, again = list(plans), list[Worker](), set[PlannedRun]()
    failures, asked = list[str](), list[int]()

    def ask(number: int) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        for worker in going:
            worker.stop()

    with listening(ask):
        _start_server()
        try:
            while going or (waiting and not asked):
                while waiting and len(going) < config.parallel and not asked:
                    going.append(_start(waiting.pop(0), config))
                    if asked:  # while it was started
                        going[-1].stop()
                wait([source for worker in going for source in worker.sources])
                for worker in list(going):
                    ended = not worker.process.is_alive()  # asked first, so that no message is missed
                    for what, content in worker.messages():
                        _heed(worker, what, content, config, finished, failures, progress)
                    if not (ended or worker.ended()):
                        continue
                    going.remove(worker)
                    code, planned = worker.process.exitcode or 0, worker.planned
                    if worker.said or asked:
                        continue
                    if code < 0 and planned not in again:
                        again.add(planned)
                        waiting.append(planned)
                        warnings.warn(
                            f"{planned}, its process was killed ({_name(code)}); it is started again", stacklevel=2
                        )
                    else:
                        failures.append(f"{planned}, its process ended ({_name(code)})")
        finally:
            for worker in going:
                worker.process.kill()
    if asked:
        raise Stopped(asked[0], f"{len(finished.records)} runs are finished, those at work are saved")
    return failures


def _heed(
    worker: Worker,
    what: str,
    content: Any,
    config: CompareConfig,
    finished: Finished,
    failures: list[str],
    progress: Progress,
) -> None:
    """Do what a message asks for."""
    planned = worker.planned
    match what:
        case "epoch":
            progress(f"{planned}", *content)
        case "warning":
            warnings.warn(f"{planned}, {content}", stacklevel=2)
        case "failed":
            worker.said = what
            failures.append(f"{planned}, {content}")
        case _:
            worker.said = what
            finished.append(content)
            Resumable(planned, config).clear()


def _name(code: int) -> str:
    """Of an exit code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _start_server() -> None:
    """PyTorch is imported once for all of them, by a process that a Ctrl-C meanwhile leaves alone."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start(planned: PlannedRun, config: CompareConfig) -> Worker:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // config.parallel)
    process = context.Process(target=_train, args=(planned, config, threads, theirs))
    process.start()
    theirs.close()  # the process has it, and the end of what it sends is seen
    return Worker(planned, process, ours)


def _train(planned: PlannedRun, config: CompareConfig, threads: int, connection: Any) -> None:
    """What a process does: tell every epoch and warning, at the end the record, or what went wrong."""
    os.setpgrp()  # a Ctrl-C is for the process that started this one, which then asks
    torch.set_num_threads(threads)
    warnings.showwarning = lambda message, *_: connection.send(("warning", str(message)))
    run = Resumable(planned, config, alone=False)
    with listening(run.checkpoints.ask):
        try:
            for epoch in run.begin(load_data(config)):
                connection.send(("epoch", (epoch.epoch + 1, run.run.total_epochs, epoch.accuracy)))
            connection.send(("finished", run.record()))
        except MorphogenError as error:
            connection.send(("failed", str(error)))
        except (Stopped, BrokenPipeError):  # nobody listens any more
            pass
