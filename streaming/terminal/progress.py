"""A bar for work that takes long, on a terminal and nowhere else.

Exists so that whoever waits for minutes sees how far it is. Protects what other programs read: the bar is written to
standard error, only where that is a terminal, and is gone when the work is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import IO, cast

from django.core.management.base import OutputWrapper
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

EVERY_S = 0.1
"""How often the bar is moved; a step costs next to nothing."""


def nothing(done: int = 1) -> None:
    """Steps that nobody sees."""


@contextmanager
def bar(what: str, total: int, *, err: OutputWrapper, wanted: bool = True) -> Iterator[Callable[..., None]]:
    """Gives what is called with the number of steps done, one without. ``total``: steps, about."""
    if not wanted or not err.isatty():
        yield nothing
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Not what Django puts around it: that ends every write with a line of its own.
    console = Console(file=cast("IO[str]", err._out), force_terminal=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        waiting, due = 0, monotonic() + EVERY_S

        def step(done: int = 1) -> None:
            nonlocal waiting, due
            waiting += done
            if monotonic() >= due:
                progress.advance(task, waiting)
                waiting, due = 0, monotonic() + EVERY_S

        yield step
        progress.advance(task, waiting)
