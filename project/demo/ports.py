"""Free ports on this machine's loopback address."""

from __future__ import annotations

import socket

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now; connections that linger from an earlier one do not matter."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def first_free(candidates: range) -> int:
    """The first free port of ``candidates``; raises ``OSError`` if there is none."""
    for port in candidates:
        if is_free(port):
            return port
    raise OSError(f"no free port between {candidates.start} and {candidates.stop - 1}")
