"""What is active is believed only of a statement: signed, about these rows, not lapsed, not replayed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from guardrails import bootstrap, keys, loading, selectors, services, statements, stating, tasks
from guardrails.loading import PolicyUnavailable
from guardrails.models import Activation, Policy, PolicyVersion
from guardrails.services import Refused
from guardrails.signing import Purpose, SigningKey, canonical_bytes, new_key_pem, sign
from guardrails.statements import LIFETIME_S, SKEW_S, StatementRefused, Subject
from project.celery import app
from tests.conftest import Cast, forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]
HOUR = 3_600.0


def document(*words: str, name: str = "support") -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "warn", "keywords": list(words)}
    return {"policy": name, "description": "d", "guardrails": [rule]}


def install(*words: str, name: str = "support") -> PolicyVersion:
    return services.install(document=document(*words, name=name))[0]


def activation(name: str = "support") -> Activation:
    found = Policy.objects.get(name=name).activation
    assert found is not None
    return found


def said(row: Activation) -> statements.Statement:
    return statements.read(row.statement, keys.trusted_keys(Purpose.ACTIVATION))


def reason(name: str = "support") -> str:
    with pytest.raises(PolicyUnavailable) as refused:
        selectors.active_policy(name)
    return refused.value.reason


def alter(row: Activation, **columns: object) -> None:
    """As somebody would who can write to the database."""
    Activation.objects.filter(pk=row.pk).update(**columns)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let hours pass for whoever asks what time it is."""

    def pass_(hours: float) -> None:
        now = time.time() + hours * HOUR
        monkeypatch.setattr(loading, "wall_clock", lambda: now)
        monkeypatch.setattr(stating, "wall_clock", lambda: now)

    return pass_


def test_it_works(cast: Cast) -> None:
    version = install("acme")
    row = services.activate(version=version, by=cast.operator, note="because")
    statement = said(row)
    assert (statement.issuer, statement.policy, statement.cohort) == ("sluicegate", "support", "")
    assert (statement.serial, statement.version, statement.digest) == (2, 1, version.digest)
    assert statement.exp - statement.iat == LIFETIME_S
    assert abs(statement.iat - time.time()) < HOUR
    assert (row.activated_by, row.note) == (cast.operator, "because")
    assert selectors.active_policy("support").version == 1


def test_lapsed_statement_is_refused_and_the_last_good_version_goes_on(
    later: Any, caplog: pytest.LogCaptureFixture
) -> None:
    install("acme")
    good = selectors.active_policy("support")
    later(24 + SKEW_S / HOUR - 0.01)
    assert selectors.active_policy("support") is good
    assert "policy_unhealthy" not in caplog.text
    later(24 + SKEW_S / HOUR + 0.01)
    assert selectors.active_policy("support") is good
    assert "policy_unhealthy" in caplog.text
    forget_policies()
    assert reason() == "expired"
    (info,) = selectors.policy_choices()
    assert not info.healthy
    assert "expired" in info.error


def test_statement_of_a_time_to_come_is_refused(later: Any) -> None:
    install("acme")
    later(-1)
    assert reason() == "not_yet"


def test_renewed_statement_holds_on_with_the_same_serial(later: Any) -> None:
    install("acme")
    before = said(activation())
    later(30)
    assert reason() == "expired"
    tasks.renew_statements()
    row = activation()
    after = said(row)
    assert after.subject == before.subject
    assert after.iat - before.iat >= 29 * HOUR
    assert row.renewed_at is not None
    assert selectors.active_policy("support").version == 1


def test_statement_is_renewed_only_when_it_is_due(later: Any) -> None:
    install("acme")
    row = activation()
    assert services.renew_statements() == 0
    later(5.9)
    assert services.renew_statements() == 0
    assert activation().statement == row.statement
    later(6.1)
    assert services.renew_statements() == 1


def test_what_was_at_work_before_is_not_renewed(later: Any) -> None:
    first = install("acme")
    old = activation()
    install("acme", "other")
    later(7)
    assert services.renew_statements() == 1
    old.refresh_from_db()
    assert old.renewed_at is None
    assert first.number == 1


@pytest.mark.parametrize("change", ["serial", "version", "cohort", "policy", "blank", "garbage", "other_row"])
def test_altered_activation_is_refused_not_renewed_and_the_last_good_stays(
    change: str, caplog: pytest.LogCaptureFixture, later: Any
) -> None:
    first, second = install("acme"), install("acme", "other")
    other = install("acme", name="lax")
    row = activation()
    good = selectors.active_policy("support")
    match change:
        case "serial":
            alter(row, serial=9)
        case "version":
            alter(row, version=first)
            Policy.objects.filter(name="support").update(active_version=first)
        case "cohort":
            alter(row, cohort="few")
        case "policy":
            alter(row, version=other)
            Policy.objects.filter(name="support").update(active_version=other)
        case "blank":
            alter(row, statement="")
        case "garbage":
            alter(row, statement=row.statement[:-4] + "AAAA")
        case "other_row":
            Policy.objects.filter(name="support").update(active_version=first)
    assert selectors.active_policy("support") is good
    assert good.version == second.number
    assert "policy_unhealthy" in caplog.text
    forget_policies()
    assert reason() in ("altered", "untrusted", "missing")
    if change == "other_row":
        return  # the statement itself is good; it is the policy's row that lies
    later(7)
    statement = Activation.objects.get(pk=row.pk).statement
    services.renew_statements()
    assert Activation.objects.get(pk=row.pk).statement == statement
    assert "statement_not_renewed" in caplog.text


def test_version_of_another_policy_is_refused_though_it_is_signed_and_stated(caplog: pytest.LogCaptureFixture) -> None:
    install("acme")
    lax = install("nothing", name="lax")
    good = selectors.active_policy("support")
    Policy.objects.filter(name="support").update(active_version=lax, activation=activation("lax"))
    assert selectors.active_policy("support") is good
    assert "policy_unhealthy" in caplog.text
    selectors.forget()
    assert reason() == "altered"
    assert {info.name: info.healthy for info in selectors.policy_choices()} == {"support": False, "lax": True}
    assert selectors.active_policy("lax").version == 1


def test_old_activation_put_back_is_a_replay(caplog: pytest.LogCaptureFixture) -> None:
    first = install("acme")
    old = activation()
    install("acme", "other")
    good = selectors.active_policy("support")
    Policy.objects.filter(name="support").update(active_version=first, activation=old)
    assert selectors.active_policy("support") is good
    assert good.version == 2
    assert "replayed" in caplog.text


def test_old_activation_put_back_is_never_renewed(later: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = install("acme")
    old = activation()
    install("acme", "other")
    Policy.objects.filter(name="support").update(active_version=first, activation=old)
    forget_policies()
    later(25)
    assert services.renew_statements() == 0
    assert "statement_not_renewed" in caplog.text
    assert activation().statement == old.statement
    assert reason() == "expired"


def test_statement_by_any_other_key_is_refused() -> None:
    version = install("acme")
    row = activation()
    subject = loading.subject_of(row)
    strangers = SigningKey.from_pem(new_key_pem(), Purpose.ACTIVATION)
    for key in (strangers, keys.signing_key(Purpose.VERSION)):
        alter(row, statement=statements.issue(subject, now=time.time(), key=key))
        forget_policies()
        assert reason() == "untrusted"
    services.activate(version=version)
    assert selectors.active_policy("support").version == 1


@pytest.mark.parametrize(
    "wrong", [{"exp": 10**10}, {"exp": 5}, {"serial": 0}, {"iat": "now"}, {"more": 1}, {"serial": 1.5}]
)
def test_statement_that_says_what_it_must_not_is_refused(wrong: dict[str, object]) -> None:
    install("acme")
    row = activation()
    payload = {**json.loads(said(row).model_dump_json()), **wrong}
    alter(row, statement=sign(canonical_bytes(payload), keys.signing_key(Purpose.ACTIVATION)))
    forget_policies()
    assert reason() in ("lifetime", "altered")


def test_statement_of_another_issuer_is_refused(settings: Any) -> None:
    install("acme")
    settings.SLUICEGATE_ISSUER = "elsewhere"
    assert reason() == "altered"


def test_roll_back_goes_to_the_newest_older_version_that_was_active_and_says_why(cast: Cast) -> None:
    install("one"), install("two")
    draft = services.save_draft(document=document("never active"))
    services.sign(version=services.publish(policy=draft))
    install("four")
    row = services.rollback(policy=draft, by=cast.operator, note="four warns of everything")
    assert (row.version.number, row.serial) == (2, 4)
    assert (row.activated_by, row.note) == (cast.operator, "four warns of everything")
    again = services.rollback(policy=draft)
    assert (again.version.number, again.serial, again.note) == (1, 5, "Roll-back from version 2.")
    with pytest.raises(Refused, match="older than version 1 was ever active"):
        services.rollback(policy=draft)
    assert selectors.active_policy("support").version == 1


def test_roll_back_refuses_what_cannot_be_gone_back_to_and_changes_nothing() -> None:
    policy = services.save_draft(document=document("one"))
    with pytest.raises(Refused, match="no active version"):
        services.rollback(policy=policy)
    services.publish(policy=policy)
    draft = services.save_draft(document=document("two"))
    second = services.sign(version=services.publish(policy=draft))
    services.activate(version=second)
    with pytest.raises(PolicyUnavailable, match="not signed"):
        services.rollback(policy=policy, number=1)
    with pytest.raises(Refused, match="not older"):
        services.rollback(policy=policy, number=2)
    with pytest.raises(Refused, match="does not exist"):
        services.rollback(policy=policy, number=0)
    assert Activation.objects.count() == 1


@pytest.fixture
def one_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single starter policy: all of them take seconds to publish."""
    (tmp_path / "demo.json").write_text(json.dumps(document("acme", name="demo")))
    monkeypatch.setattr(bootstrap, "STARTERS", tmp_path)


@pytest.mark.usefixtures("one_starter")
def test_start_of_a_demo_says_again_what_lapsed_while_the_machine_was_off(later: Any) -> None:
    bootstrap.prepare_database()
    later(100)
    assert reason("demo") == "expired"
    bootstrap.prepare_database()
    assert selectors.active_policy("demo").version == 1


@pytest.mark.usefixtures("one_starter")
def test_start_of_a_demo_states_what_was_activated_before_there_were_statements() -> None:
    bootstrap.prepare_database()
    Policy.objects.update(activation=None)
    Activation.objects.update(statement="")
    forget_policies()
    assert reason("demo") == "missing"
    bootstrap.prepare_database()
    assert selectors.active_policy("demo").version == 1


def test_statement_is_about_what_it_says_and_nothing_else() -> None:
    key = SigningKey.from_pem(new_key_pem(), Purpose.ACTIVATION)
    subject = Subject("us", "p", "", 3, 2, "sha256:0", "")
    statement = statements.read(statements.issue(subject, now=1e9, key=key), {key.public.kid: key.public})
    statements.check_subject(statement, subject)
    with pytest.raises(StatementRefused, match="another serial"):
        statements.check_subject(statement, Subject("us", "p", "", 4, 2, "sha256:0", ""))


def test_row_that_another_thread_has_overtaken_is_read_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install("acme")
    stale = selectors._policy_row("support")
    install("acme", "other")
    assert selectors.active_policy("support").version == 2
    selectors.forget()  # no last good version could stand in
    rows = iter([stale])
    fresh = selectors._policy_row
    monkeypatch.setattr(selectors, "_policy_row", lambda name: next(rows, None) or fresh(name))
    assert selectors.active_policy("support").version == 2
    assert "policy_unhealthy" not in caplog.text


def test_restored_database_goes_on_above_what_was_seen() -> None:
    """Serials of the backup are lower than what this process saw: a replay, until activated above them."""
    version = install("acme")
    for _ in range(3):
        services.activate(version=version)
    assert selectors.active_policy("support").version == 1
    first = Activation.objects.get(serial=1)
    Policy.objects.update(activation=first)
    Activation.objects.filter(serial__gt=1).delete()
    selectors.forget()
    assert reason() == "replayed"
    assert services.activate(version=version).serial == 5  # of 4 this machine knows
    assert services.activate(version=version, serial=100).serial == 100
    assert services.activate(version=version, serial=100).serial == 101
    assert selectors.active_policy("support").version == 1


def test_rows_put_back_convince_no_process_that_has_just_started(later: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who can write to the database removes what came after an activation whose statement still holds."""
    first = install("acme")
    old = activation()
    install("acme", "other")
    assert selectors.active_policy("support").version == 2
    Policy.objects.filter(name="support").update(active_version=first, activation=old)
    Activation.objects.filter(serial__gt=old.serial).delete()
    forget_policies()  # as after a restart
    assert reason() == "replayed"
    later(7)
    assert services.renew_statements() == 0  # nor is it given a new life
    assert "statement_not_renewed" in caplog.text
    assert services.activate(version=first).serial == 3  # who has the key activates above what was seen
    assert selectors.active_policy("support").version == 1


def test_worker_knows_every_periodic_task() -> None:
    app.loader.import_default_modules()
    wanted = {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert {"guardrails.tasks.renew_statements", "streaming.tasks.watch_rollouts"} <= wanted <= set(app.tasks)
