"""Runs beside each other, each in a process of its own: for their accuracy, not for their time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

from ..errors import MorphogenError
from .checkpoint import Stopped, listening
from .config import CompareConfig
from .finished import Finished
from .sources import load_data
from .turns import Progress, Resumable, Task


def side_by_side(tasks: Sequence[Task], config: CompareConfig, finished: Finished, progress: Progress) -> list[str]:
    """Train `config.parallel` at a time until all are over; returns what went wrong with any.

    Raises:
        Stopped: asked to; every run at work has saved a checkpoint.
    """
    waiting, going = list(tasks), dict[Any, tuple[Task, ForkServerProcess]]()  # by the end of a pipe that is ours
    failures, asked = list[str](), list[int]()

    def ask(number: int) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        for _, process in going.values():
            process.terminate()

    with listening(ask):
        _start_server()
        try:
            while going or (waiting and not asked):
                while waiting and len(going) < config.parallel and not asked:
                    task = waiting.pop(0)
                    connection, process = _start(task, config)
                    going[connection] = task, process
                for ready in wait(list(going)):
                    connection: Any = ready
                    task, process = going[connection]
                    try:
                        what, content = connection.recv()
                    except EOFError:
                        del going[connection]
                        process.join()
                        if task.key not in finished.records and process.exitcode and not asked:
                            failures.append(f"{task}, its process ended (exit code {process.exitcode})")
                        continue
                    match what:
                        case "epoch":
                            progress(f"{task}", *content)
                        case "warning":
                            warnings.warn(f"{task}, {content}", stacklevel=2)
                        case "failed":
                            failures.append(f"{task}, {content}")
                        case _:
                            finished.append(content)
                            Resumable(task, config).clear()
        finally:
            for _, process in going.values():
                process.kill()
    if asked:
        raise Stopped(asked[0])
    return failures


def _start_server() -> None:
    """PyTorch is imported once for all of them, by a process that a Ctrl-C meanwhile leaves alone."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start(task: Task, config: CompareConfig) -> tuple[Any, ForkServerProcess]:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // config.parallel)
    process = context.Process(target=_train, args=(task, config, threads, theirs))
    process.start()
    theirs.close()  # the process has it, and the end of what it sends is seen
    return ours, process


def _train(task: Task, config: CompareConfig, threads: int, connection: Any) -> None:
    """What a process does: tell every epoch and warning, at the end the record, or what went wrong."""
    os.setpgrp()  # a Ctrl-C is for the process that started this one, which then asks
    torch.set_num_threads(threads)
    warnings.showwarning = lambda message, *_: connection.send(("warning", str(message)))
    run = Resumable(task, config, alone=False)
    with listening(run.checkpoints.ask):
        try:
            for epoch in run.begin(load_data(config)):
                connection.send(("epoch", (epoch.epoch + 1, run.run.total_epochs, epoch.accuracy)))
            connection.send(("finished", run.record()))
        except MorphogenError as error:
            connection.send(("failed", str(error)))
        except (Stopped, BrokenPipeError):  # nobody listens any more
            pass
