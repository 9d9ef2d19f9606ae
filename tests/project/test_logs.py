"""Nothing secret and no user's text gets into a log line."""

from __future__ import annotations

import json
import logging
import logging.config

import pytest
import structlog

from project.logs import WithoutRoutine, blank_secrets, logging_config


def cleaned(**event: object) -> dict[str, object]:
    return dict(blank_secrets(None, "info", dict(event)))


def test_it_works() -> None:
    assert cleaned(event="started", session="s-1") == {"event": "started", "session": "s-1"}


@pytest.mark.parametrize("key", ["Authorization", "api_key", "password", "prompt", "text", "delta", "chunk", "cookie"])
def test_a_field_that_carries_secrets_or_text_is_blanked(key: str) -> None:
    assert cleaned(**{key: "anything at all"}) == {key: "[not logged]"}


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("Authorization: Bearer abc.def.ghi refused", "Authorization: Bearer [not logged] refused"),
        ("key sg_0123456789abcdef revoked", "key [not logged] revoked"),
        ("sk-proj-0123456789 seen", "[not logged] seen"),
        ("GET /v1/stream/events?session_id=7&token=abc.def", "GET /v1/stream/events?session_id=7&token=[not logged]"),
        ("cannot reach redis://:hunter2@127.0.0.1:6379/0", "cannot reach redis://:[not logged]@127.0.0.1:6379/0"),
        ("postgres://gate:hunter2@db/gate", "postgres://gate:[not logged]@db/gate"),
    ],
)
def test_a_secret_inside_a_message_is_cut_out_and_the_rest_stays(message: str, kept: str) -> None:
    assert cleaned(event=message) == {"event": kept}


def test_ordinary_words_and_addresses_are_left_alone() -> None:
    message = "listening on http://127.0.0.1:8000/v1/docs, task streaming.tasks.sweep, task_id 12"
    assert cleaned(event=message) == {"event": message}


def test_lines_of_other_libraries_and_tracebacks_are_cleaned_too(capsys: pytest.CaptureFixture[str]) -> None:
    line = logging_config(json_lines=True)["formatters"]["line"]  # type: ignore[index]
    formatter = line.pop("()")(**line)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with structlog.contextvars.bound_contextvars(correlation_id="c-1"):
            try:
                raise ConnectionError("no answer from redis://:hunter2@127.0.0.1:6379/0")
            except ConnectionError:
                logger.exception("failed for %s", "Bearer abc.def")
    finally:
        logger.removeHandler(handler)
    written = capsys.readouterr().err
    assert "hunter2" not in written
    assert "abc.def" not in written
    entry = json.loads(written)
    assert entry["correlation_id"] == "c-1"
    assert entry["level"] == "error"
    assert "ConnectionError" in entry["exception"]


@pytest.mark.parametrize(
    ("level", "message", "written"),
    [
        (logging.INFO, "Task streaming.tasks.sweep[1] succeeded", False),
        (logging.ERROR, "Task streaming.tasks.sweep[1] raised unexpected", True),
        (logging.INFO, "Task streaming.tasks.check[1] succeeded", True),
    ],
)
def test_only_the_good_news_of_periodic_tasks_is_left_out(level: int, message: str, written: bool) -> None:
    record = logging.LogRecord("celery", level, __file__, 1, message, None, None)
    assert WithoutRoutine().filter(record) is written
