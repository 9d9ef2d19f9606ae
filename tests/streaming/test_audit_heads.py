"""Heads that are put aside: with which keys they are read later, and that somebody sees when none is kept any more."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from django.core.management import CommandError, call_command
from django.db import DEFAULT_DB_ALIAS
from django.test import AsyncClient
from prometheus_client import generate_latest

from guardrails.keyring import entry
from guardrails.keys import signing_key
from guardrails.signing import Purpose, SigningKey, new_key_pem
from streaming import metrics, sessions, tasks
from streaming.audit.heads import age_s
from streaming.audit.verify import signed_head, stored_entries
from streaming.models import AuditEntry, AuditHead
from streaming.sessions import NewSession, Visitor

pytestmark = pytest.mark.django_db(transaction=True)


class Settings:
    SLUICEGATE_AUDIT_HEADS_FILE: str
    SLUICEGATE_AUDIT_HEADS_EVERY_S: float


def public_pem(private: bytes) -> bytes:
    return (
        serialization.load_pem_private_key(private, None)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def as_set(private: bytes) -> bytes:
    member = entry(SigningKey.from_pem(private, Purpose.AUDIT).public)
    return json.dumps({"keys": [member.as_dict()]}).encode()


def private_pem(private: bytes) -> bytes:
    return private


def verify(*arguments: str) -> str:
    out = StringIO()
    call_command("audit", "verify", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def old(tmp_path: Path) -> bytes:
    """A key that is not ours any more; the file of heads has one by it and one by ours."""
    new = NewSession(Visitor(session_key="b"), "p", {"name": "t", "version": 3, "digest": "d"}, "scripted", "m")
    sessions.start_session(new)
    old = new_key_pem()
    heads = [signed_head(SigningKey.from_pem(old, Purpose.AUDIT))]
    sessions.start_session(new)
    heads.append(signed_head(signing_key(Purpose.AUDIT)))
    (tmp_path / "heads").write_text("\n".join(heads) + "\n")
    return old


@pytest.mark.parametrize("form", [public_pem, as_set, private_pem])
def test_it_works(old: bytes, tmp_path: Path, form: object) -> None:
    """The file is read with the old key named and the present one known; a public half is enough."""
    kept = ("--head", str(tmp_path / "heads"))
    with pytest.raises(CommandError, match="not trusted"):
        verify(*kept)
    (tmp_path / "key").write_bytes(form(old))  # type: ignore[operator]
    assert "every kept head among them" in verify(*kept, "--key", str(tmp_path / "key"))


@pytest.mark.parametrize("form", [public_pem, as_set, private_pem])
def test_another_key_is_no_help(old: bytes, tmp_path: Path, form: object) -> None:
    (tmp_path / "key").write_bytes(form(new_key_pem()))  # type: ignore[operator]
    with pytest.raises(CommandError, match="not trusted"):
        verify("--head", str(tmp_path / "heads"), "--key", str(tmp_path / "key"))


def of_another_purpose(private: bytes) -> bytes:
    member = entry(SigningKey.from_pem(private, Purpose.VERSION).public)
    return json.dumps({"keys": [member.as_dict()]}).encode()


def misnamed(private: bytes) -> bytes:
    found = json.loads(as_set(private))
    found["keys"][0]["kid"] = "audit-" + "A" * 43
    return json.dumps(found).encode()


@pytest.mark.parametrize("form", [of_another_purpose, misnamed, lambda key: b"", lambda key: b"{}", lambda key: b"{"])
def test_what_is_no_audit_key_is_refused(old: bytes, tmp_path: Path, form: object) -> None:
    (tmp_path / "key").write_bytes(form(old))  # type: ignore[operator]
    with pytest.raises(CommandError) as failed:
        verify("--head", str(tmp_path / "heads"), "--key", str(tmp_path / "key"))
    assert failed.value.returncode == 1


async def audit_part() -> dict[str, str]:
    found = (await AsyncClient().get("/ready")).json()["parts"]["audit"]
    assert set(found) == {"state", "detail"}
    return dict(found)


async def test_a_head_that_is_not_kept_any_more_is_seen(settings: Settings, tmp_path: Path, valkey_url: str) -> None:
    settings.SLUICEGATE_AUDIT_HEADS_FILE = ""
    assert (await audit_part())["state"] == "ok", "none is to be kept; the checks at the start say so"
    file = tmp_path / "heads"
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(file)
    assert (await audit_part())["state"] == "degraded", "none was ever kept"
    file.write_text("head\n")
    settings.SLUICEGATE_AUDIT_HEADS_EVERY_S = 600.0
    for age, state in ((0, "ok"), (1_100, "ok"), (1_300, "degraded")):
        os.utime(file, (time.time() - age,) * 2)
        assert (await audit_part())["state"] == state, age
    await metrics.read_head()
    page = generate_latest(metrics.REGISTRY).decode().splitlines()
    (line,) = [line for line in page if line.startswith("sluicegate_audit_head_age_seconds ")]
    assert 1_300 <= float(line.split()[1]) < 2_000
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(tmp_path / "no" / "such")
    await metrics.read_head()
    assert math.isnan(metrics.AUDIT_HEAD_AGE._value.get())


def test_a_kept_head_is_a_young_one(settings: Settings, tmp_path: Path) -> None:
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(tmp_path / "heads")
    assert age_s(time.time()) is None
    tasks.keep_audit_head()
    found = age_s(time.time() + 5)
    assert found is not None
    assert 0 < found < 60


def torn(line: str) -> str:
    return line[: len(line) // 2]


@pytest.mark.parametrize(
    "damage", [torn, lambda line: "", lambda line: "\0\0\0\0", lambda line: "{}", lambda line: line[:-4] + "AAAA"],
    ids=["torn", "nothing", "NUL", "another thing", "altered"],
)  # fmt: skip
def test_one_line_that_is_no_head_keeps_no_other_from_being_compared(
    settings: Settings, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    file = tmp_path / "heads"
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(file)
    new = NewSession(Visitor(session_key="b"), "p", {"name": "t", "version": 3, "digest": "d"}, "scripted", "m")
    sessions.start_session(new)
    tasks.keep_audit_head()
    file.write_text(spoilt := damage(file.read_text().strip()))  # the process died in the middle of the line
    sessions.start_session(new)
    tasks.keep_audit_head()
    lines = file.read_text().splitlines()
    assert lines[:-1] == ([spoilt] if spoilt else [])
    if spoilt:
        with pytest.raises(CommandError, match="not every kept head is believed: Line 1 of") as failed:
            verify("--head", str(file))
        assert failed.value.returncode == 1
    else:
        assert "every kept head among them" in verify("--head", str(file))

    last = list(stored_entries())[-2]
    AuditEntry.objects.filter(seq__gt=last.seq)._raw_delete(DEFAULT_DB_ALIAS)
    AuditHead.objects.update(seq=last.seq, hash=last.hash)
    out = StringIO()
    with pytest.raises(CommandError, match="the audit log is not as it was written"):
        call_command("audit", "verify", "--head", str(file), "--json", stdout=out)
    codes = [json.loads(line)["code"] for line in out.getvalue().splitlines()]
    assert codes[: len(lines)] == ["head_refused"] * len(lines[:-1]) + ["cut_off"]


def test_a_head_lies_on_the_disk_before_it_counts_as_kept(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SLUICEGATE_AUDIT_HEADS_FILE = str(tmp_path / "heads")
    synced: list[int] = []
    real = os.fsync

    def fsync(number: int) -> None:
        synced.append(os.fstat(number).st_size)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    tasks.keep_audit_head()
    assert synced == [(tmp_path / "heads").stat().st_size]
