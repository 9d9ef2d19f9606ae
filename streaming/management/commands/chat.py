"""`manage.py chat [PROMPT]`: talk to a model through the guardrails, from a terminal, with nothing else running.

Protects the promise that a stranger sees a guarded stream with one command: no broker, no worker, no key, and a data
directory that is made on first use. Exit status: 0, 1 (an answer was blocked or failed), 2 (usage).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NoReturn, cast

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.db import connection
from django.db.utils import DatabaseError
from rich.console import Console

from guardrails.bootstrap import prepare_database
from guardrails.policy import Policy, compile_policy
from streaming.chat import StartRefused
from streaming.log_redis import close_shared_log
from streaming.providers.base import Provider, UnknownProvider, get_provider
from streaming.terminal.screen import Screen
from streaming.terminal.talk import Quit, Talk, Wishes
from streaming.terminal.telling import FAILED
from streaming.terminal.views import JsonLines, Plain, View

NO_POLICY = "none"
UNGUARDED = "No guardrails: everything is shown as the model says it (--policy none)."
FIXABLE = frozenset({"prompt", "text"})
"""Fields whose refusal is about this one prompt; a conversation goes on."""


class Command(BaseCommand):
    help = "Talk to a model through the guardrails. Without PROMPT it converses; Ctrl-C stops an answer."
    requires_system_checks: list[str] = []  # here they would only complain of the broker that is not needed

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="ask this and end (default: converse)")
        parser.add_argument(
            "--provider", metavar="NAME", help="who answers (default: scripted; at a --base-url openai)"
        )
        parser.add_argument("--base-url", metavar="URL", default="", help="ask the provider at this address")
        parser.add_argument("--model", metavar="M", default="", help="model (default: the provider's)")
        parser.add_argument("--policy", metavar="NAME", default="", help="policy (default: basic), or none")
        parser.add_argument("--json", action="store_true", dest="as_json", help="one event a line")
        switch = parser.add_mutually_exclusive_group()
        switch.add_argument("--tools", action="store_true", dest="tools", help="offer the tools to the model")
        switch.add_argument("--no-tools", action="store_false", dest="tools", help="offer none (default)")
        parser.set_defaults(tools=False)

    def handle(
        self,
        *args: object,
        prompt: str | None,
        provider: str | None,
        base_url: str,
        model: str,
        policy: str,
        as_json: bool,
        tools: bool,
        **options: object,
    ) -> None:
        name = provider or ("openai" if base_url else "scripted")
        wishes = Wishes(name, model, policy, tools, provider_at(name, base_url), no_policy(policy))
        view = self.view(as_json=as_json, colour=not options.get("no_color"))
        with quietly():
            try:
                prepare()
                outcomes = set(converse(Talk(wishes, view), prompts(prompt), one=prompt is not None))
            except StartRefused as error:
                raise CommandError(str(error), returncode=2) from None
            except DatabaseError as error:
                raise CommandError(f"the database cannot be used: {error}", returncode=1) from None
            except BrokenPipeError:
                # Whoever read our output has gone; nothing more can be said, not even at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                outcomes = {"error"}
        if outcomes & FAILED:
            sys.exit(1)

    def view(self, *, as_json: bool, colour: bool) -> View:
        out, aside = AsIs(self.stdout), AsIs(self.stderr)
        if as_json:
            return JsonLines(out.write, aside.write)
        console = Console(file=cast("IO[str]", out), no_color=not colour or None, highlight=False)
        if console.is_terminal and not console.is_dumb_terminal:
            return Screen(console)
        return Plain(out.write, aside.write, raw=not out.isatty())


class AsIs:
    """A stream of a command that writes what it is given, at once; Django's own ends every write with a new line."""

    def __init__(self, stream: OutputWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text, ending="")
        self._stream.flush()

    def flush(self) -> None:
        """Done with every write."""

    def isatty(self) -> bool:
        return bool(self._stream.isatty())


def converse(talk: Talk, asked: Iterator[str], *, one: bool) -> Iterator[str]:
    """Outcome after outcome, until there is nothing more to ask. Raises ``StartRefused`` when nothing can be asked."""
    if talk.wishes.policy is not None:
        talk.view.say(UNGUARDED)
    with asyncio.Runner() as runner:
        try:
            yield from _answers(runner, talk, asked, one=one)
        finally:
            runner.run(close_shared_log())  # the breakers' state is shared where there is a store


def _answers(runner: asyncio.Runner, talk: Talk, asked: Iterator[str], *, one: bool) -> Iterator[str]:
    loop = runner.get_loop()
    for prompt in asked:
        # Between answers Ctrl-C is Python's own again: it ends the wait for the next prompt.
        loop.add_signal_handler(signal.SIGINT, talk.interrupt)
        try:
            yield runner.run(talk.ask(prompt))
        except StartRefused as error:
            if one or error.field not in FIXABLE:
                raise
            talk.view.say(str(error))
        except Quit:
            return
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def prompts(given: str | None) -> Iterator[str]:
    """The one that was given, or what is typed (or piped in, a line each) until the end, or Ctrl-C."""
    if given is not None:
        yield given
        return
    while True:
        try:
            line = ask()
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                sys.stderr.write("\n")
            return
        except UnicodeDecodeError:
            raise CommandError("standard input is not text", returncode=2) from None
        if line.strip():
            yield line


def ask() -> str:
    """The next line. Raises ``EOFError``."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input("> ")
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\n")


def provider_at(name: str, base_url: str) -> Provider | None:
    """The provider built for this address; None without one.

    The address goes where the vendor's own tools read it, whichever of the two names they have for it.
    """
    if not base_url:
        return None
    if not base_url.lower().startswith(("http://", "https://")):
        _usage("--base-url takes an http:// or https:// address")
    address = {f"{name.upper()}_BASE_URL": base_url, f"{name.upper()}_HOST": base_url}
    try:
        found = get_provider(name, {**os.environ, **address})
    except (UnknownProvider, ValueError) as error:
        _usage(str(error))
    if found.scripted:
        _usage(f"--base-url: {name} asks no endpoint")
    # An address that somebody tries out must not open the breaker of the one that servers ask.
    found.circuit = f"{name}@{hashlib.sha256(base_url.encode()).hexdigest()[:16]}"
    return found


def no_policy(name: str) -> Policy | None:
    """A policy without guardrails, if that is what the name says."""
    return compile_policy({"policy": NO_POLICY, "guardrails": []}) if name == NO_POLICY else None


def prepare() -> None:
    """Make what an empty data directory needs. In production the database is somebody else's work."""
    if settings.SLUICEGATE_PRODUCTION:
        return
    before = os.umask(0o077)  # what is made here is its owner's, also in a directory that others may enter
    try:
        prepare_database()
    finally:
        os.umask(before)
        connection.close()


@contextmanager
def quietly() -> Iterator[None]:
    """Log lines would fall into the answer; errors alone are worth that."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _usage(why: str) -> NoReturn:
    raise CommandError(why, returncode=2)
