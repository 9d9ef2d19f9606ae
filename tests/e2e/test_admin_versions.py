"""A version's way through the admin in a real browser: each role takes its own step and nobody takes another's, and the
pages say who took which one, and when."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import INHERITED, ROOT, Demo
from tests.e2e.visitor import Visitor

PASSWORD = "correct horse battery"
ROLES = ("Author", "Signer", "Operator", "Reviewer")
EVERY = (*ROLES, "Outsider")
STEPS = {
    ("policy", "publish"): "Author",
    ("policyversion", "sign"): "Signer",
    ("policyversion", "activate"): "Operator",
}
SIGN, ACTIVATE = "Sign", "Activate (or roll back to)"
MAKE_CAST = f"""
from django.contrib.auth.models import Group, User
for name in {EVERY!r}:
    user = User.objects.create_user(name, password={PASSWORD!r}, is_staff=True)
    user.groups.set(Group.objects.filter(name=name))
    assert user.groups.count() == (name != "Outsider")
"""


@pytest.fixture
def people(shared_demo: Demo, visit: Visit) -> dict[str, Visitor]:
    """The cast, each signed in on a page of their own, in the ready-made group of their name; the outsider in none."""
    if not shared_demo.rows("select 1 from auth_user where username = 'Outsider'"):
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
        env["SLUICEGATE_DATA_DIR"] = str(shared_demo.data_dir)
        command = [sys.executable, str(ROOT / "manage.py"), "shell", "-c", MAKE_CAST]
        subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=120, stdin=subprocess.DEVNULL)
    return {name: signed_in(visit(shared_demo.url), name) for name in EVERY}


def signed_in(visitor: Visitor, name: str) -> Visitor:
    page = visitor.page
    page.goto(visitor.base + "/admin/")
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("input[name=username]")).to_have_count(0)
    return visitor


def listed(visitor: Visitor, model: str) -> Page:
    """The list of policies or versions."""
    visitor.page.goto(f"{visitor.base}/admin/guardrails/{model}/")
    expect(visitor.page.locator("#result_list")).to_be_visible()
    return visitor.page


def row(page: Page, name: str) -> Locator:
    return page.locator("#result_list tr").filter(has=page.get_by_role("link", name=name, exact=True))


def act(visitor: Visitor, model: str, name: str, step: str, told: str) -> None:
    """Choose a row and a step as a person does, and wait for what the page says."""
    page = listed(visitor, model)
    row(page, name).locator("input[name=_selected_action]").check()
    page.locator("select[name=action]").select_option(label=step)
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text(told, exact=True)).to_be_visible()


def offered(visitor: Visitor, model: str) -> set[str]:
    """The steps that the list offers."""
    options = listed(visitor, model).locator("select[name=action] option")
    return {value for option in options.all() if (value := option.get_attribute("value"))}


def forged(visitor: Visitor, model: str, step: str, pk: int) -> int:
    """Status of a step that is sent without the page's having offered it, with the visitor's own session and token."""
    return sent(visitor, f"{model}/", {"action": step, "_selected_action": str(pk), "index": "0"})


def sent(visitor: Visitor, place: str, fields: dict[str, str]) -> int:
    """Status of a form that is sent without its page, with the visitor's own session and token."""
    (token,) = [one["value"] for one in visitor.page.context.cookies() if one["name"] == "csrftoken"]
    address = f"{visitor.base}/admin/guardrails/{place}"
    form: dict[str, str | float | bool] = {**fields, "csrfmiddlewaretoken": token}
    return visitor.page.request.post(address, form=form, headers={"Referer": address}, max_redirects=0).status


def write(author: Visitor, address: str, pattern: str, name: str = "stepwise") -> None:
    """Save a draft of one rule through the form."""
    page = author.page
    page.goto(author.base + address)
    expect(page.locator("#rules")).to_be_visible()
    if address.endswith("/add/"):
        page.get_by_label("Policy", exact=True).fill(name)
        page.get_by_label("Add a guardrail").select_option("regex")
        page.get_by_role("button", name="Add", exact=True).click()
        page.locator(".rules-card").last.get_by_role("button", name="Add to rules").click()
        page.locator(".rules-item").get_by_label("ID", exact=True).fill("heron")
    else:
        page.locator(".rules-card summary").first.click()
    page.locator(".rules-item").get_by_label("Pattern", exact=True).fill(pattern)
    expect(page.locator("#rules-summary")).to_contain_text("This draft can be saved.")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#rules")).to_have_count(0)


def number(running: Demo, query: str) -> int:
    return int(str(running.rows(query)[0][0]))


def test_it_works(people: dict[str, Visitor], shared_demo: Demo) -> None:
    author, signer, operator = people["Author"], people["Signer"], people["Operator"]
    write(author, "/admin/guardrails/policy/add/", "blue heron")
    policy = number(shared_demo, "select id from guardrails_policy where name = 'stepwise'")
    act(author, "policy", "stepwise", "Publish the draft as the next version", "stepwise v1 published")
    write(author, f"/admin/guardrails/policy/{policy}/change/", "<b>grey</b> heron")
    act(author, "policy", "stepwise", "Publish the draft as the next version", "stepwise v2 published")
    first, second = (
        number(shared_demo, f"select id from guardrails_policyversion where policy_id = {policy} and number = {n}")
        for n in (1, 2)
    )

    signer.page.goto(f"{signer.base}/admin/guardrails/policy/{policy}/diff/")
    signer.page.get_by_label("From").select_option("1")
    signer.page.get_by_label("To").select_option("2")
    signer.page.get_by_role("button", name="Compare").click()
    expect(signer.page.get_by_text("1 difference")).to_be_visible()
    expect(signer.page.locator(".diff-before")).to_have_text('"blue heron"')
    expect(signer.page.locator(".diff-after")).to_have_text('"<b>grey</b> heron"')

    for version in (1, 2):
        act(signer, "policyversion", f"stepwise v{version}", SIGN, f"stepwise v{version} signed")
        act(operator, "policyversion", f"stepwise v{version}", ACTIVATE, f"stepwise v{version} activated")
    back = "stepwise v1 activated: rolled back from version 2"
    act(operator, "policyversion", "stepwise v1", ACTIVATE, back)
    active = number(shared_demo, f"select active_version_id from guardrails_policy where id = {policy}")
    assert active == first

    page = people["Reviewer"].page
    published = [f"Author stepwise v{version} published" for version in (1, 2)]
    steps = {
        f"policy/{policy}": ["Author Added", published[0], "Author Changed", published[1]],
        f"policyversion/{second}": [published[1], "Signer stepwise v2 signed", "Operator stepwise v2 activated"],
        f"policyversion/{first}": [
            published[0],
            "Signer stepwise v1 signed",
            "Operator stepwise v1 activated",
            f"Operator {back}",
        ],
    }
    for address, expected in steps.items():
        page.goto(f"{shared_demo.url}/admin/guardrails/{address}/history/")
        lines = page.locator("tbody tr")
        expect(lines).to_have_count(len(expected))
        for line, told in zip(lines.all(), expected, strict=True):
            when, who_and_what = line.inner_text().split("\t", 1)
            assert re.search(r"20\d\d", when)
            assert " ".join(who_and_what.split()).startswith(told)
    page.goto(f"{shared_demo.url}/admin/guardrails/policyversion/{first}/change/")
    whens = r", \d+ \w+ \d{4}, [\d:]{8}, by "
    expect(page.locator(".version-steps li")).to_have_text(
        [
            "Draft saved by Author",
            re.compile(rf"^Published{whens}Author$"),
            re.compile(rf"^Signed{whens}Signer$"),
            re.compile(rf"^Activated for everyone with serial 1{whens}Operator$"),
            re.compile(rf"^Activated for everyone with serial 3{whens}Operator \(Roll-back from version 2\.\)$"),
        ]
    )
    page.set_viewport_size({"width": 390, "height": 900})
    for address in (f"policyversion/{first}/change", f"policy/{policy}/diff", "rollout"):
        page.goto(f"{shared_demo.url}/admin/guardrails/{address}/")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
    for visitor in people.values():
        visitor.assert_clean()


def test_steps_of_others_are_not_offered_and_refused_when_forged(people: dict[str, Visitor], shared_demo: Demo) -> None:
    policy, version = shared_demo.rows(
        "select policy_id, id from guardrails_policyversion where signature != '' order by id limit 1"
    )[0]
    rows = {"policy": int(str(policy)), "policyversion": int(str(version))}
    record = (
        "select (select count(*) from guardrails_policyversion), (select count(*) from guardrails_activation),"
        " (select count(*) from django_admin_log)"
    )
    before = shared_demo.rows(record)
    for name in ROLES:
        for model in rows:
            own = {step for (of, step), who in STEPS.items() if (of, who) == (model, name)}
            theirs = {step for of, step in STEPS if of == model} - own
            there = offered(people[name], model)
            assert own <= there, (name, model, there)
            assert not theirs & there, (name, model, there)
    for name in EVERY:
        for (model, step), who in STEPS.items():
            if who != name:
                assert forged(people[name], model, step, rows[model]) == 403, (name, step)
    outsider = people["Outsider"]
    outsider.page.goto(f"{outsider.base}/admin/")
    expect(outsider.page.locator("a[href*='/guardrails/']")).to_have_count(0)
    for address in (*rows, f"policy/{rows['policy']}/diff", f"policyversion/{rows['policyversion']}/change"):
        refused = outsider.page.request.get(f"{outsider.base}/admin/guardrails/{address}/")
        assert refused.status == 403, address
    assert shared_demo.rows(record) == before
    for visitor in people.values():
        visitor.assert_clean()


def test_drafts_that_others_than_an_author_send_are_refused_and_change_nothing(
    people: dict[str, Visitor], shared_demo: Demo
) -> None:
    def draft(policy: str, word: str) -> dict[str, str]:
        guardrail = {"name": "words", "kind": "keywords", "keywords": [word]}
        return {"draft": json.dumps({"policy": policy, "description": "d", "guardrails": [guardrail]})}

    assert sent(people["Author"], "policy/add/", draft("sent", "heron")) == 302
    pk = number(shared_demo, "select id from guardrails_policy where name = 'sent'")
    change = f"policy/{pk}/change/"
    record = "select name, description, draft, draft_at, draft_by_id from guardrails_policy order by id"
    log = "select count(*) from django_admin_log"
    before = shared_demo.rows(record), shared_demo.rows(log)
    for name in EVERY:
        if name != "Author":
            assert sent(people[name], "policy/add/", draft("sent-too", "heron")) == 403, name
            assert sent(people[name], change, draft("sent", "falcon")) == 403, name
    assert (shared_demo.rows(record), shared_demo.rows(log)) == before
    assert sent(people["Author"], change, draft("sent", "falcon")) == 302
    assert [row for row in shared_demo.rows(record) if "falcon" in str(row)]
    for visitor in people.values():
        visitor.assert_clean()
