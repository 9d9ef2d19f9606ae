"""The admin through its pages, by the cast: each does what the name says and is refused the rest."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse

from guardrails import selectors, services
from guardrails.models import ApiKey, Policy, PolicyVersion
from tests.conftest import PASSWORD, Cast, forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]


def document(*words: str, name: str = "support") -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "warn", "keywords": list(words)}
    return {"policy": name, "description": "d", "guardrails": [rule]}


def signed_in(user: User) -> Client:
    client = Client()
    assert client.login(username=user.get_username(), password=PASSWORD)
    return client


@pytest.fixture
def root(db: None) -> Client:
    return signed_in(User.objects.create_superuser("root", password=PASSWORD))


def act(client: Client, model: str, action: str, *rows: int) -> str:
    """Run a list action; the page that it leads to, as text."""
    url = reverse(f"admin:guardrails_{model}_changelist")
    response = client.post(url, {"action": action, "_selected_action": [str(row) for row in rows]}, follow=True)
    return unescape(response.content.decode())


def page(client: Client, name: str, *args: object) -> str:
    response = client.get(reverse(f"admin:guardrails_{name}", args=args))
    assert response.status_code == 200
    return unescape(response.content.decode())


def test_it_works(cast: Cast) -> None:
    author, signer, operator = map(signed_in, (cast.author, cast.signer, cast.operator))
    added = author.post(reverse("admin:guardrails_policy_add"), {"draft": json.dumps(document("acme"))})
    assert added.status_code == 302
    policy = Policy.objects.get()
    assert policy.draft_by == cast.author
    assert "support v1 published" in act(author, "policy", "publish", policy.pk)
    version = PolicyVersion.objects.get()
    assert "support v1 signed" in act(signer, "policyversion", "sign", version.pk)
    assert "support v1 activated" in act(operator, "policyversion", "activate", version.pk)
    version.refresh_from_db()
    activated_by = version.activations.get().activated_by
    assert (version.published_by, version.signed_by, activated_by) == (cast.author, cast.signer, cast.operator)
    assert selectors.active_policy("support").version == 1


def test_steps_of_others_are_refused(cast: Cast) -> None:
    version = services.publish(policy=services.save_draft(document=document("acme")))
    services.save_draft(document=document("acme", "other"))
    for user in (cast.signer, cast.operator, cast.reviewer):
        act(signed_in(user), "policy", "publish", version.policy.pk)
    for user in (cast.author, cast.operator, cast.reviewer):
        act(signed_in(user), "policyversion", "sign", version.pk)
    services.sign(version=version)
    for user in (cast.author, cast.signer, cast.reviewer):
        act(signed_in(user), "policyversion", "activate", version.pk)
    assert PolicyVersion.objects.count() == 1
    assert version.signed_by is None
    assert not version.activations.exists()


def test_outsider_and_stranger_see_the_login_only(cast: Cast) -> None:
    for client in (Client(), signed_in(cast.outsider)):
        for name in ("policy_changelist", "policyversion_changelist", "apikey_changelist", "activation_changelist"):
            response = client.get(reverse(f"admin:guardrails_{name}"))
            assert response.status_code == 302
            assert response["Location"].startswith("/admin/login/")


def test_author_may_see_no_keys(cast: Cast) -> None:
    assert signed_in(cast.author).get(reverse("admin:guardrails_apikey_changelist")).status_code == 403


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guardrails": [{"kind": "nope"}]}, "guardrails[0].kind"),
        ({"policy": "other"}, "must stay 'support'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_wrong_document_is_refused_with_the_path_and_kept_out(root: Client, change: dict[str, Any], words: str) -> None:
    policy = services.save_draft(document=document("acme"))
    response = root.post(
        reverse("admin:guardrails_policy_change", args=[policy.pk]),
        {"draft": json.dumps({**document("acme"), **change})},
    )
    assert response.status_code == 200
    assert words in unescape(response.content.decode())
    before = policy.draft
    policy.refresh_from_db()
    assert policy.draft == before


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_what_is_no_document_is_refused_on_the_page(root: Client, text: str) -> None:
    assert root.post(reverse("admin:guardrails_policy_add"), {"draft": text}).status_code == 200
    assert not Policy.objects.exists()


def test_second_policy_of_a_name_does_not_overwrite_the_first(root: Client) -> None:
    policy = services.save_draft(document=document("acme"))
    response = root.post(reverse("admin:guardrails_policy_add"), {"draft": json.dumps(document("other"))})
    assert "exists already" in unescape(response.content.decode())
    assert "acme" in str(Policy.objects.get(pk=policy.pk).draft)


def test_form_of_a_policy_without_draft_begins_with_what_is_active(root: Client) -> None:
    version, _ = services.install(document=document("acme"))
    text = page(root, "policy_change", version.policy.pk)
    assert '"acme"' in text
    assert '"policy": "support"' in text


def test_version_page_verifies_what_it_shows(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    version, _ = services.install(document=document("acme"))
    assert "signed, verified" in page(root, "policyversion_changelist")
    assert "signed, verified" in page(root, "policyversion_change", version.pk)
    assert version.digest in page(root, "policyversion_change", version.pk)
    monkeypatch.setattr("guardrails.loading.trusted_keys", lambda purpose: {})
    forget_policies()
    assert "not trusted" in page(root, "policyversion_changelist")


def test_version_has_no_form_to_change_or_delete_it(root: Client) -> None:
    version, _ = services.install(document=document("acme"))
    for name in ("change", "delete"):
        url = reverse(f"admin:guardrails_policyversion_{name}", args=[version.pk])
        assert root.post(url, {"notes": "better", "post": "yes"}).status_code == 403
    assert root.get(reverse("admin:guardrails_policyversion_add")).status_code == 403
    assert "deleted" not in act(root, "policyversion", "delete_selected", version.pk)
    assert PolicyVersion.objects.get().notes == ""


def test_refused_step_is_told_in_words_and_the_others_go_on(root: Client) -> None:
    first, _ = services.install(document=document("acme"))
    second = services.publish(policy=services.save_draft(document=document("acme", "other")))
    text = act(root, "policyversion", "sign", first.pk, second.pk)
    assert "signed already" in text
    assert "support v2 signed" in text


def test_key_is_shown_on_one_page_once(root: Client) -> None:
    form = {"name": "shop", "scopes": ["check"], "origins": "https://a.example", "calls_per_minute": 7,
            "updates_per_second": 8, "answers_at_once": 3}  # fmt: skip
    url = root.post(reverse("admin:guardrails_apikey_add"), form)["Location"]
    stored = [str(session.get_decoded()) for session in Session.objects.all()] + [
        f"{entry.change_message} {entry.object_repr}" for entry in LogEntry.objects.all()
    ]
    text = unescape(root.get(url).content.decode())
    key = ApiKey.objects.get()
    plaintext = next(word for word in text.replace("<", " ").split() if word.startswith(key.prefix + "_"))
    assert selectors.api_key_for(plaintext) == key
    assert (key.calls_per_minute, key.updates_per_second, key.origins) == (7, 8, ["https://a.example"])
    assert key.answers_at_once == 3
    assert plaintext not in " ".join(stored)
    assert plaintext not in page(root, "apikey_changelist")
    assert plaintext not in page(root, "apikey_change", key.pk)
    assert key.key_hash not in page(root, "apikey_change", key.pk)
    assert "revoked" in act(root, "apikey", "revoke", key.pk)
    assert selectors.api_key_for(plaintext) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("origins", "https://a.example/path"),
        ("origins", "javascript:x"),
        ("name", "shop\u2028owner"),
        ("policy", "nope"),
        ("scopes", "everything"),
        ("calls_per_minute", 0),
        ("updates_per_second", 0),
        ("answers_at_once", 0),
    ],
)
def test_key_form_refuses_what_opens_nothing(root: Client, field: str, value: str) -> None:
    form = {"name": "shop", "scopes": ["check"], "calls_per_minute": 7, "updates_per_second": 8, field: value}
    assert root.post(reverse("admin:guardrails_apikey_add"), form).status_code == 200
    assert not ApiKey.objects.exists()


def test_key_is_changed_without_touching_its_secret(root: Client) -> None:
    key, plaintext = services.create_api_key(name="shop", scopes=["check"])
    form = {"name": "shop", "scopes": ["check", "stream"], "calls_per_minute": 60, "updates_per_second": 20}
    assert root.post(reverse("admin:guardrails_apikey_change", args=[key.pk]), form).status_code == 302
    changed = selectors.api_key_for(plaintext)
    assert changed is not None
    assert changed.scopes == ["check", "stream"]
    assert changed.answers_at_once is None


def test_admin_names_an_icon_that_is_there(root: Client) -> None:
    text = root.get("/admin/").content.decode()
    assert '/static/icon.svg"' in text
    assert finders.find("icon.svg")


def test_every_list_and_user_form_opens_in_the_theme(root: Client) -> None:
    for url in ("/admin/", "/admin/auth/user/", "/admin/auth/user/add/", "/admin/auth/group/",
                "/admin/guardrails/activation/", "/admin/guardrails/policy/"):  # fmt: skip
        assert root.get(url).status_code == 200


def test_page_of_a_version_shows_what_publication_found_out(root: Client) -> None:
    version = services.publish(policy=services.save_draft(document=document("acme")))
    shown = page(root, "policyversion_change", version.pk)
    assert "compiled in " in shown
    assert "examples: 0 of 0 right" in shown


def test_every_step_is_in_the_history_and_a_refused_one_is_not(cast: Cast) -> None:
    author, signer, operator = map(signed_in, (cast.author, cast.signer, cast.operator))
    author.post(reverse("admin:guardrails_policy_add"), {"draft": json.dumps(document("acme"))})
    policy = Policy.objects.get()
    act(author, "policy", "publish", policy.pk)
    version = PolicyVersion.objects.get()
    act(operator, "policyversion", "activate", version.pk)  # not signed yet
    act(author, "policyversion", "sign", version.pk)  # not allowed
    act(signer, "policyversion", "sign", version.pk)
    act(operator, "policyversion", "activate", version.pk)
    steps = LogEntry.objects.order_by("action_time").values_list("user__username", "change_message")
    assert [(who, what) for who, what in steps if not what.startswith("[")] == [
        ("author", "support v1 published"),  # in the version's history
        ("author", "support v1 published"),  # and in the policy's
        ("signer", "support v1 signed"),
        ("operator", "support v1 activated"),
    ]
    assert "support v1 signed" in page(signer, "policyversion_history", version.pk)
    assert "support v1 published" in page(author, "policy_history", policy.pk)
    assert "support v1 published" in page(signer, "policyversion_history", version.pk)


def test_author_who_may_sign_cannot_sign_their_own_version_and_somebody_else_can(cast: Cast, settings: Any) -> None:
    settings.SLUICEGATE_FOUR_EYES = True
    both = [cast.author, cast.signer]
    names = ["add_policy", "change_policy", "publish_policy", "sign_policyversion", "view_policy", "view_policyversion"]
    for person in both:
        person.user_permissions.set(Permission.objects.filter(content_type__app_label="guardrails", codename__in=names))
    author, second = map(signed_in, both)
    author.post(reverse("admin:guardrails_policy_add"), {"draft": json.dumps(document("acme"))})
    act(author, "policy", "publish", Policy.objects.get().pk)
    version = PolicyVersion.objects.get()
    said = act(author, "policyversion", "sign", version.pk)
    assert "four eyes are required: author wrote or published support v1, so somebody else has to sign it" in said
    version.refresh_from_db()
    assert (version.signature, version.signed_by) == ("", None)
    assert "support v1 signed" not in page(author, "policyversion_history", version.pk)
    assert "support v1 signed" in act(second, "policyversion", "sign", version.pk)
    version.refresh_from_db()
    assert version.signed_by == cast.signer
    settings.SLUICEGATE_FOUR_EYES = False
    own = services.publish(policy=services.save_draft(document=document("b"), by=cast.author), by=cast.author)
    assert "support v2 signed" in act(
        author, "policyversion", "sign", own.pk
    )  # the setting, and nothing else, forbids it


def test_a_forged_step_of_somebody_else_is_an_error(cast: Cast) -> None:
    version = services.publish(policy=services.save_draft(document=document("acme")))
    services.save_draft(document=document("acme", "other"))
    cast.outsider.is_staff = True
    cast.outsider.save()
    every = {"author", "signer", "operator", "reviewer", "outsider"}
    steps = {
        ("policy", "publish"): "author",
        ("policyversion", "sign"): "signer",
        ("policyversion", "activate"): "operator",
        ("policyversion", "run_as_shadow"): "operator",
        ("policyversion", "end_shadow"): "operator",
    }
    for (model, step), who in steps.items():
        url = reverse(f"admin:guardrails_{model}_changelist")
        row = version.policy.pk if model == "policy" else version.pk
        for sent in ([step], ["", step], [step, ""]):
            for name in every - {who}:
                forged = {"action": sent, "_selected_action": [str(row)], "index": "0"}
                assert signed_in(getattr(cast, name)).post(url, forged).status_code == 403, (name, step, sent)
    assert not LogEntry.objects.exists()
    assert PolicyVersion.objects.get().signature == ""


def test_roll_back_says_so_and_the_version_tells_every_step(cast: Cast) -> None:
    author, signer, operator = map(signed_in, (cast.author, cast.signer, cast.operator))
    policy = services.save_draft(document=document("acme"), by=cast.author)
    act(author, "policy", "publish", policy.pk)
    services.save_draft(document=document("acme", "heron"), by=cast.author)
    act(author, "policy", "publish", policy.pk)
    second, first = PolicyVersion.objects.all()
    act(signer, "policyversion", "sign", first.pk, second.pk)
    act(operator, "policyversion", "activate", first.pk)
    act(operator, "policyversion", "activate", second.pk)
    assert "support v1 activated: rolled back from version 2" in act(operator, "policyversion", "activate", first.pk)
    assert first.activations.latest("serial").note == "Roll-back from version 2."
    first.refresh_from_db()
    services.activate(version=first, note="<b>asked</b>")
    shown = operator.get(reverse("admin:guardrails_policyversion_change", args=[first.pk])).content.decode()
    steps = re.findall(r"<li>(.*?)</li>", shown.partition('class="version-steps"')[2].partition("</ol>")[0], re.DOTALL)
    told = [re.sub(r", \d+ \w+ \d{4}, [\d:]{8}, by", ", WHEN, by", step) for step in steps]
    assert told == [
        "Draft saved by <strong>author</strong>",
        "Published, WHEN, by <strong>author</strong>",
        "Signed, WHEN, by <strong>signer</strong>",
        "Activated for everyone with serial 1, WHEN, by <strong>operator</strong>",
        "Activated for everyone with serial 3, WHEN, by <strong>operator</strong> (Roll-back from version 2.)",
        "Activated for everyone with serial 4, WHEN, by <strong>nobody on record</strong> (&lt;b&gt;asked&lt;/b&gt;)",
    ]


def test_rollouts_stand_in_a_list(root: Client) -> None:
    services.install(document=document("acme"))
    second = services.publish(policy=services.save_draft(document=document("heron")))
    services.begin_rollout(version=services.sign(version=second), percent=12.5, max_errors=0.025)
    shown = page(root, "rollout_changelist")
    for told in ("support v2", "12.5 %", "2.5 % errors"):
        assert told in shown
    assert "would-haves" not in shown


def test_a_policy_that_was_published_and_never_activated_is_not_edited_from_nothing(root: Client) -> None:
    version = services.publish(policy=services.save_draft(document=document("acme")))
    assert "acme" in page(root, "policy_change", version.policy_id)
    file = root.get(reverse("admin:guardrails_policy_file", args=[version.policy_id])).json()
    assert file == version.document
