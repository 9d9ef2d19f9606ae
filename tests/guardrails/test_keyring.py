"""Keys change without a pin changing; a revoked key is believed for nothing, and what it signed says why it stops."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils.html import escape

from guardrails import bundle, checks, keys, selectors, services, stating
from guardrails.loading import PolicyUnavailable, wall_clock
from guardrails.models import Activation, CommandStep, Policy, PolicyVersion
from guardrails.signing import KeyRefused, Purpose, SigningKey, new_key_pem
from tests.conftest import PASSWORD, Cast, forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]


class Shop:
    """An installation with key files of its own."""

    def __init__(self, folder: Path, settings: Any) -> None:
        self.folder, self.settings = folder, settings
        for purpose in Purpose:
            self.use(purpose, self.new(purpose.name.lower()))
        settings.SLUICEGATE_DATA_DIR = folder
        self.ring = folder / "keys" / "keyring.json"

    def new(self, name: str) -> Path:
        path = self.folder / f"{name}.pem"
        path.write_bytes(new_key_pem())
        return path

    def use(self, purpose: Purpose, path: Path) -> None:
        setattr(self.settings, f"SLUICEGATE_{purpose.name}_KEY_FILE", str(path))

    def kid(self, name: str, purpose: Purpose) -> str:
        return SigningKey.from_pem((self.folder / f"{name}.pem").read_bytes(), purpose).public.kid


@pytest.fixture
def shop(tmp_path: Path, settings: Any) -> Shop:
    return Shop(tmp_path, settings)


def run(*args: object) -> str:
    out = io.StringIO()
    call_command("signing_keys", *map(str, args), stdout=out)
    return out.getvalue()


def fails(*args: object) -> tuple[int, str]:
    with pytest.raises(CommandError) as failed:
        run(*args)
    return failed.value.returncode, str(failed.value)


def document(*words: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "client": True, "keywords": list(words)}
    return {"policy": "support", "description": "d", "guardrails": [rule]}


def install(*words: str) -> PolicyVersion:
    return services.install(document=document(*words))[0]


def verified(root: str) -> bundle.Verified:
    """As a client that pinned the root would, from what is served."""
    found = selectors.client_bundle("support")
    return bundle.verify_bundle(
        found.bundle,
        json.loads(json.dumps(keys.key_set())),
        root=root,
        now=wall_clock(),
        issuer="sluicegate",
        policy="support",
    )


def test_it_works(shop: Shop) -> None:
    """Without a keyring the version key is the root and vouches for the others."""
    root = keys.root()
    install("acme")
    assert verified(root.x).statement.version == 1
    members = keys.key_set()["keys"]
    assert isinstance(members, list)
    assert {member["sluicegate_purpose"] for member in members} == {"version", "activation", "audit"}
    assert [member["kid"] for member in members if "sluicegate_signature" not in member] == [root.kid]
    assert checks.check_signing_keys(None) == []


def test_version_key_is_changed_and_the_pin_stays(shop: Shop) -> None:
    root = keys.root().x
    install("acme")
    run("vouch", shop.new("next"), "--purpose", "version", "--by", shop.folder / "version.pem")
    shop.use(Purpose.VERSION, shop.folder / "next.pem")
    second = install("acme", "other")
    assert second.signature.split(".")[0] != PolicyVersion.objects.get(number=1).signature.split(".")[0]
    assert verified(root).statement.version == 2
    assert keys.root().x == root
    services.rollback(policy=second.policy)  # what the first key signed is still believed
    assert verified(root).statement.version == 1
    assert checks.check_signing_keys(None) == []


def test_version_key_that_nobody_vouched_for_is_not_believed_and_the_check_says_so(shop: Shop) -> None:
    run("vouch", shop.new("spare"), "--purpose", "version", "--by", shop.folder / "version.pem")
    shop.use(Purpose.VERSION, shop.new("stranger"))
    with pytest.raises(KeyRefused, match=r"left unsigned, .* not trusted here"):
        install("acme")
    version = PolicyVersion.objects.get()
    assert version.signature == ""
    assert "sluicegate.E011" in [found.id for found in checks.check_signing_keys(None)]
    shop.use(Purpose.VERSION, shop.folder / "version.pem")  # nothing is lost: it is signed once there is a key for it
    services.sign(version=version)
    services.activate(version=version)
    assert selectors.active_policy("support").version == 1


def test_revoked_keys_sign_and_state_nothing_more(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    version = install("acme")
    root = shop.folder / "version.pem"
    for purpose in (Purpose.VERSION, Purpose.ACTIVATION):
        name = f"late-{purpose.name.lower()}"
        run("vouch", shop.new(name), "--purpose", purpose.name.lower(), "--by", root)
        run("revoke", shop.kid(name, purpose), "--by", root, "--reason", "stolen")
    run("vouch", shop.folder / "activation.pem", "--purpose", "activation", "--by", root)
    shop.use(Purpose.ACTIVATION, shop.folder / "late-activation.pem")
    with pytest.raises(KeyRefused, match=r"nothing is stated, .*revoked: .*stolen"):
        services.activate(version=version)
    in_a_while = wall_clock() + 7 * 3_600
    monkeypatch.setattr(stating, "wall_clock", lambda: in_a_while)
    assert services.renew_statements() == 0
    assert selectors.active_policy("support").version == 1
    assert Activation.objects.count() == 1
    shop.use(Purpose.VERSION, shop.folder / "late-version.pem")
    draft = services.publish(policy=services.save_draft(document=document("acme", "other")))
    with pytest.raises(KeyRefused, match=r"left unsigned, .*revoked: .*stolen"):
        services.sign(version=draft)
    draft.refresh_from_db()
    assert draft.signature == ""


def test_activation_key_is_changed_without_a_gap(shop: Shop) -> None:
    """The old one is vouched for first, so that what it said holds until it is said anew."""
    install("acme")
    run("vouch", shop.folder / "activation.pem", "--purpose", "activation", "--by", shop.folder / "version.pem")
    shop.use(Purpose.ACTIVATION, shop.new("activation-2"))
    assert selectors.active_policy("support").version == 1
    assert verified(keys.root().x).statement.version == 1
    row = Activation.objects.get()
    before = row.statement
    services.activate(version=row.version)
    assert Activation.objects.get(serial=2).statement.split(".")[0] != before.split(".")[0]
    assert verified(keys.root().x).statement.serial == 2


def test_roll_back_to_a_version_of_a_revoked_key_is_refused_with_when_and_why(shop: Shop) -> None:
    root = shop.folder / "version.pem"
    run("vouch", shop.new("second"), "--purpose", "version", "--by", root)
    shop.use(Purpose.VERSION, shop.folder / "second.pem")
    first = install("acme")
    shop.use(Purpose.VERSION, root)
    install("acme", "other")
    run("revoke", shop.kid("second", Purpose.VERSION), "--by", root, "--reason", "lost laptop")
    with pytest.raises(PolicyUnavailable, match=r"revoked: .*lost laptop") as refused:
        services.rollback(policy=first.policy)
    assert refused.value.reason == "untrusted"
    assert Activation.objects.count() == 2
    assert selectors.active_policy("support").version == 2


def roll_back_by_command(cast: Cast, version: PolicyVersion, *words: str) -> str:
    with pytest.raises(CommandError) as failed:
        call_command("rules", "rollback", "support", *words, "--by", cast.operator.get_username(), stdout=io.StringIO())
    assert failed.value.returncode == 1
    return str(failed.value)


def roll_back_by_action(cast: Cast, version: PolicyVersion) -> str:
    client = Client()
    assert client.login(username=cast.operator.get_username(), password=PASSWORD)
    asked = {"action": "activate", "_selected_action": [str(version.pk)]}
    response = client.post(reverse("admin:guardrails_policyversion_changelist"), asked, follow=True)
    (message,) = response.context["messages"]
    assert (message.level_tag, escape(str(message)) in response.content.decode()) == ("error", True)
    return str(message)


WAYS: dict[str, Callable[[Cast, PolicyVersion], str]] = {
    "command": roll_back_by_command,
    "command that names it": lambda cast, version: roll_back_by_command(cast, version, str(version.number)),
    "admin": roll_back_by_action,
}


@pytest.mark.parametrize("way", WAYS)
def test_roll_back_to_a_revoked_keys_version_is_refused_in_words_and_changes_nothing(
    shop: Shop, cast: Cast, way: str
) -> None:
    root = shop.folder / "version.pem"
    run("vouch", shop.new("second"), "--purpose", "version", "--by", root)
    shop.use(Purpose.VERSION, shop.folder / "second.pem")
    first = install("acme")
    shop.use(Purpose.VERSION, root)
    install("acme", "other")
    run("revoke", shop.kid("second", Purpose.VERSION), "--by", root, "--reason", "lost laptop")

    def stored() -> list[object]:
        models: tuple[type[Model], ...] = (Policy, PolicyVersion, Activation, CommandStep, LogEntry)
        return [list(model._default_manager.order_by("pk").values()) for model in models]

    before = stored()
    said = WAYS[way](cast, first)
    assert "support v1 is not trusted: it is signed by a key that was revoked: " in said
    assert "lost laptop" in said
    assert shop.kid("second", Purpose.VERSION) in said
    assert stored() == before
    assert selectors.active_policy("support").version == 2
    assert verified(keys.root().x).statement.serial == 2


def test_revocation_reaches_a_process_that_had_believed_the_key(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    root = shop.folder / "version.pem"
    run("vouch", shop.new("second"), "--purpose", "version", "--by", root)
    shop.use(Purpose.VERSION, shop.folder / "second.pem")
    version = install("acme")
    good = selectors.active_policy("support")
    run("revoke", shop.kid("second", Purpose.VERSION), "--by", root, "--reason", "stolen")
    assert selectors.active_policy("support") is good  # the last good version stays …
    assert "policy_unhealthy" in caplog.text  # … loudly
    assert selectors.policy_by_digest(version.digest) is good  # and sessions that run keep theirs
    with pytest.raises(PolicyUnavailable, match="not trusted"):  # the activation key had its voucher of the stolen one
        selectors.client_bundle("support")
    assert "sluicegate.E011" in [found.id for found in checks.check_signing_keys(None)]
    forget_policies()
    with pytest.raises(PolicyUnavailable, match="stolen"):
        selectors.active_policy("support")


def test_what_the_command_refuses(shop: Shop) -> None:
    root, stranger = shop.folder / "version.pem", shop.new("stranger")
    next_ = shop.new("next")
    assert "no keyring" in run("list")
    run("vouch", next_, "--purpose", "version", "--by", root)
    assert fails("vouch", next_, "--purpose", "version", "--by", root)[1].endswith("in the keyring already")
    assert "another purpose" in fails("vouch", next_, "--purpose", "audit", "--by", root)[1]
    assert "not a version key" in fails("vouch", stranger, "--purpose", "audit", "--by", stranger)[1]
    assert "not the root" in fails("revoke", shop.kid("next", Purpose.VERSION), "--by", next_, "--reason", "r")[1]
    assert "cannot be revoked" in fails("revoke", keys.root().kid, "--by", root, "--reason", "r")[1]
    assert "not in the keyring" in fails("revoke", "version-x", "--by", root, "--reason", "r")[1]
    assert fails("vouch", shop.folder / "none.pem", "--purpose", "audit", "--by", root)[0] == 2
    run("revoke", shop.kid("next", Purpose.VERSION), "--by", root, "--reason", "r")
    assert "already" in fails("revoke", shop.kid("next", Purpose.VERSION), "--by", root, "--reason", "r")[1]
    assert "not a version key" in fails("vouch", stranger, "--purpose", "audit", "--by", next_)[1]
    listed = run("list")
    assert "the root, which clients pin" in listed
    assert "revoked 20" in listed


def test_list_fails_when_a_listed_key_is_not_believed(shop: Shop) -> None:
    run("vouch", shop.new("next"), "--purpose", "version", "--by", shop.folder / "version.pem")
    path = shop.ring
    ring = json.loads(path.read_text())
    del ring["keys"][1]["sluicegate_signature"]
    path.write_text(json.dumps(ring))
    assert fails("list") == (1, f"{path}: 1 not believed")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"keys": []}', '{"root": 1, "keys": []}', '{"root": "x", "keys": [{}]}', "[" * 9_999],
    ids=len,
)
def test_keyring_that_cannot_be_read_stops_everything_and_is_told(shop: Shop, text: str) -> None:
    shop.ring.parent.mkdir()
    shop.ring.write_text(text)
    with pytest.raises(KeyRefused, match="keyring"):
        keys.trusted_keys(Purpose.VERSION)
    assert [found.id for found in checks.check_signing_keys(None)] == ["sluicegate.E010"]
    with pytest.raises((PolicyUnavailable, KeyRefused)):
        install("acme")


def test_named_keyring_that_is_not_there_is_no_keyring_of_nothing_revoked(shop: Shop) -> None:
    """Without it the version key would be the root, and what was revoked believed again."""
    root = shop.folder / "version.pem"
    run("vouch", shop.new("next"), "--purpose", "version", "--by", root)
    run("revoke", shop.kid("next", Purpose.VERSION), "--by", root, "--reason", "stolen")
    shop.settings.SLUICEGATE_KEYRING_FILE = str(shop.ring)
    version = install("acme")
    assert checks.check_signing_keys(None) == []
    shop.ring.rename(shop.folder / "away.json")
    (found,) = checks.check_signing_keys(None)
    assert (found.id, "it is not there" in str(found.msg)) == ("sluicegate.E010", True)
    with pytest.raises(KeyRefused, match="it is not there"):
        keys.key_set()
    forget_policies()
    with pytest.raises(PolicyUnavailable, match="it is not there"):
        selectors.active_policy("support")
    with pytest.raises((PolicyUnavailable, KeyRefused), match="it is not there"):
        services.activate(version=version)
    (shop.folder / "away.json").rename(shop.ring)
    assert selectors.active_policy("support").version == 1


def test_revocation_raises_the_serial_and_a_restored_keyring_gets_a_higher_one(shop: Shop) -> None:
    root = shop.folder / "version.pem"
    install("acme")
    assert verified(keys.root().x).keys_serial == 1  # also without a keyring
    run("vouch", shop.new("next"), "--purpose", "version", "--by", root)
    assert verified(keys.root().x).keys_serial == 1  # a key more takes nothing away
    before = shop.ring.read_text()
    assert "serial 2" in run("revoke", shop.kid("next", Purpose.VERSION), "--by", root, "--reason", "stolen")
    assert verified(keys.root().x).keys_serial == 2
    shop.ring.write_text(before)
    assert verified(keys.root().x).keys_serial == 1  # which whoever saw 2 refuses
    assert "serial 7" in run("state", "--by", root, "--serial", 7)
    assert verified(keys.root().x).keys_serial == 7
    assert "serial 8" in run("state", "--by", root)
    assert "serial 8" in run("list")
    assert "not the root" in fails("state", "--by", shop.folder / "next.pem")[1]
    shop.ring.unlink()
    assert "no keyring" in fails("state", "--by", root)[1]


def test_keyring_that_the_root_has_stated_nothing_about_is_refused(shop: Shop) -> None:
    run("vouch", shop.new("next"), "--purpose", "version", "--by", shop.folder / "version.pem")
    ring = json.loads(shop.ring.read_text())
    shop.ring.write_text(json.dumps(ring | {"sluicegate_statement": ""}))
    assert [found.id for found in checks.check_signing_keys(None)] == ["sluicegate.E010"]
    assert "stated nothing" in fails("list")[1]
    with pytest.raises((PolicyUnavailable, KeyRefused), match="stated nothing"):
        install("acme")


def test_keyring_is_replaced_whole(shop: Shop) -> None:
    path = shop.ring
    run("vouch", shop.new("next"), "--purpose", "version", "--by", shop.folder / "version.pem")
    assert [name for name in os.listdir(shop.ring.parent) if name.startswith(".")] == []
    assert path.stat().st_mode & 0o777 == 0o644
    assert "PRIVATE" not in path.read_text()


def test_bundle_command_gives_and_verifies(shop: Shop) -> None:
    def rules(*args: object) -> str:
        out = io.StringIO()
        call_command("rules", *map(str, args), stdout=out)
        return out.getvalue()

    install("acme")
    file, set_ = shop.folder / "bundle.json", shop.folder / "keys.json"
    file.write_text(rules("bundle", "support"))
    set_.write_text(json.dumps(keys.key_set()))
    assert "support: version 1, serial 1, good until 20" in rules("bundle", "support", "--verify", file)
    root = keys.root().x
    rules("bundle", "support", "--verify", file, "--keys", set_, f"--root={root}")
    for extra, reason in (
        (("--seen", 2), "replayed"),
        (("--keys-seen", 2), "replayed"),
        ((f"--root={SigningKey.from_pem(new_key_pem(), Purpose.VERSION).public.x}",), "unknown_key"),
    ):
        with pytest.raises(CommandError, match=reason) as failed:
            rules("bundle", "support", "--verify", file, *extra)
        assert failed.value.returncode == 1
    found = json.loads(file.read_text())
    file.write_text(found["bundle"][:-9] + "A" * 9)
    with pytest.raises(CommandError, match=r"malformed|signature"):
        rules("bundle", "support", "--verify", file)
    with pytest.raises(CommandError) as failed:
        rules("bundle", "support", f"--root={root}")
    assert failed.value.returncode == 2
    with pytest.raises(CommandError) as failed:
        rules("bundle", "support", "--verify", shop.folder / "none")
    assert failed.value.returncode == 2
    with pytest.raises(CommandError, match="there is no policy") as failed:
        rules("bundle", "nope")
    assert failed.value.returncode == 1
