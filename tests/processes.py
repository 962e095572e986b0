"""Several processes of one test."""

import socket


def free_port() -> int:
    """Where the first of them can listen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
