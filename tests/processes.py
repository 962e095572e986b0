"""Several processes of one test."""

import contextlib
import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from morphogen.cli import main


def free_port() -> int:
    """Where the first of them can listen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def fresh() -> str:
    """The start method of processes that have run nothing yet, but share one import of what `warm` imports."""
    multiprocessing.set_forkserver_preload(["warm"])
    here = str(Path(__file__).parent)  # before Python 3.13, what they are forked from does not look where this one does
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        forkserver.ensure_running()
    return "forkserver"


def be_rank(rank: int, count: int, port: int) -> None:
    """What torchrun tells a process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "a test"}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)


def run_alone(arguments, said) -> None:
    """What `morphogen` does in one process of its own, which ends as the command does; what it says is written down."""
    be_rank(0, 1, free_port())
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.exit(main(arguments))
