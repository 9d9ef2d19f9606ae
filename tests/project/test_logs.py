"""Nothing secret and no user's text gets into a log line."""

from __future__ import annotations

import json
import logging
import logging.config

import pytest
import structlog
from django.test import RequestFactory

from project.logs import WithoutRoutine, blank_secrets, logging_config
from streaming.correlation import correlation_in, task_id_of


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
        (f"key sg_AbCd1234_{43 * 'x'} revoked", "key [not logged] revoked"),
        ("sk-proj-0123456789 seen", "[not logged] seen"),
        ("GET /v1/stream/events?session_id=7&token=abc.def", "GET /v1/stream/events?session_id=7&token=[not logged]"),
        ("cannot reach redis://:hunter2@127.0.0.1:6379/0", "cannot reach redis://:[not logged]@127.0.0.1:6379/0"),
        ("postgres://gate:hunter2@db/gate", "postgres://gate:[not logged]@db/gate"),
    ],
)
def test_a_secret_inside_a_message_is_cut_out_and_the_rest_stays(message: str, kept: str) -> None:
    assert cleaned(event=message) == {"event": kept}


def test_the_name_of_a_key_is_no_secret() -> None:
    assert cleaned(event="audit_exported", client="sg_AbCd1234") == {"event": "audit_exported", "client": "sg_AbCd1234"}
    assert cleaned(event="of sg_AbCd1234, sg_0123456789abcdef") == {"event": "of sg_AbCd1234, [not logged]"}


def test_ordinary_words_and_addresses_are_left_alone() -> None:
    message = "listening on http://127.0.0.1:8000/v1/docs, task streaming.tasks.sweep, task_id 12"
    assert cleaned(event=message) == {"event": message}


def as_written() -> logging.Formatter:
    line = logging_config(json_lines=True)["formatters"]["line"]  # type: ignore[index]
    formatter: logging.Formatter = line.pop("()")(**line)
    return formatter


@pytest.mark.parametrize(
    ("logger", "message", "correlation_id"),
    [
        ("celery.worker.strategy", "Task streaming.tasks.check[order-4711~" + 32 * "a" + "] received", "order-4711"),
        ("celery.app.trace", "Task streaming.tasks.check[" + 32 * "b" + "] succeeded in 0.1s: None", None),
        ("somebody.else", "Task streaming.tasks.check[order-4711~" + 32 * "a" + "] received", None),
        ("celery.beat", "Scheduler: Sending due task sweep", None),
    ],
)
def test_the_queues_lines_about_a_task_bear_the_id_of_the_call(
    logger: str, message: str, correlation_id: str | None
) -> None:
    record = logging.LogRecord(logger, logging.INFO, __file__, 1, message, None, None)
    assert json.loads(as_written().format(record)).get("correlation_id") == correlation_id


def test_a_tasks_name_takes_no_id_that_could_forge_a_line() -> None:
    assert [correlation_in(task_id_of(one)) for one in ("order-4711", "-.order.-")] == ["order-4711", "-.order.-"]
    assert correlation_in(f"Task a.b[{task_id_of('order-4711')}] received") == "order-4711"
    for given in ("", "short", "<forged>\n", "order~4711"):
        assert correlation_in(task_id_of(given)) == ""
    assert task_id_of("order-4711") != task_id_of("order-4711"), "each task is one of its own"


def test_what_django_says_of_an_answer_bears_the_id_of_the_call() -> None:
    record = logging.LogRecord("django.request", logging.WARNING, __file__, 1, "Gone: /v1", None, None)
    record.request = RequestFactory().get("/v1", **{"sluicegate.correlation_id": "order-4711"})
    assert json.loads(as_written().format(record))["correlation_id"] == "order-4711"


def test_lines_of_other_libraries_and_tracebacks_are_cleaned_too(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(as_written())
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
