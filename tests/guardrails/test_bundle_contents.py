"""From any policy to the bytes that clients get: nothing of a guardrail that was not offered to them is in there.

The whole way is taken, draft, publication, signature, activation and bundle. Each guardrail has a number of its own in
its name, its rules, its words, so that what gets out is found however it is written.
"""

from __future__ import annotations

import base64
import json
import random
import re
from typing import Any

import pytest

from guardrails import selectors, services
from guardrails.models import Policy
from guardrails.policy import PolicyError

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]

Json = dict[str, Any]
POLICIES = 16
RUN_BY_CLIENTS = ("regex", "keywords", "secrets")
"""Kinds with words of their own that can go."""
ASKS = ("ai_judge", "moderation_api", "webhook")
"""Kinds that ask a model or a service."""


def config_of(kind: str, number: str, rng: random.Random) -> Json:
    """Parameters of a kind with a number in every place where they take one."""
    rule = {"id": f"id{number}", "pattern": number + rng.choice(["", "[0-9]{2}", "(?:a|b)"]), "must_match": [],
            "placeholder": f"[{number}]"}  # fmt: skip
    return {
        "regex": {"rules": [rule]},
        "keywords": {"keywords": [number, f"{number}x"], "whole_word": rng.random() < 0.5},
        "secrets": {"rules": [rule]},
        "pii": {},
        "url": {"blocked_domains": [f"{number}.example"]},
        "length": {"max_chars": int(number)},
        "topics": {"deny": [number]},
        "code": {},
        "toxicity": {},
        "prompt_injection": {},
        "ai_judge": {"provider": "scripted", "rubric": f"It says {number}."},
        "moderation_api": {},
        "webhook": {"url": f"https://{number}.example/judge", "secret": "SLUICEGATE_HOOK_JUDGE"},
    }[kind]


def random_guardrails(rng: random.Random) -> list[tuple[Json, str]]:
    """Guardrails, each with its number."""
    made = []
    kinds = [*RUN_BY_CLIENTS, *RUN_BY_CLIENTS, *ASKS, "pii", "url", "length", "topics", "code", "toxicity",
             "prompt_injection"]  # fmt: skip
    for _ in range(rng.randint(2, 7)):
        kind, number = rng.choice(kinds), str(rng.randint(10**8, 10**9 - 1))
        guardrail: Json = {"name": f"n{number}", "kind": kind, "description": f"d{number}"}
        guardrail["config"] = config_of(kind, number, rng)
        offered = rng.choice([True, True, False, None])
        guardrail |= {} if offered is None else {"client": offered}
        mode = rng.choice([None, None, "BLOCK", "MONITOR", "DISABLED"])
        guardrail |= {} if mode is None else {"mode": mode}
        action = rng.choice([None, "block", "redact", "warn"])
        guardrail |= {} if action is None else {"action": action}
        made.append((guardrail, number))
    return made


def accepted(name: str, guardrail: Json) -> bool:
    """Whether a policy of this guardrail alone is taken."""
    try:
        services.save_draft(document={"policy": name, "guardrails": [guardrail]})
    except PolicyError:
        return False
    return True


def written_out(compact: str) -> str:
    """All that a JWS says, those within it as well, as text: escapes are read, classes of one character are it."""
    said = []
    for part in compact.split(".")[:2]:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
        said.append(text)
        value = json.loads(text)
        said += [written_out(inner) for inner in value.values() if isinstance(inner, str) and inner.count(".") == 2]
    plain = re.sub(r"\\u\{(\w+)\}", lambda found: chr(int(found[1], 16)), "\n".join(said).replace("\\\\", "\\"))
    return re.sub(r"\[(.)\]", r"\1", plain)


def test_it_works() -> None:
    rng = random.Random(7)
    went = stayed = refused = 0
    for n in range(POLICIES):
        tried = random_guardrails(rng)
        kept = [(guardrail, number) for guardrail, number in tried if accepted(f"try-{n}", guardrail)]
        refused += sum(
            guardrail["kind"] in ASKS and guardrail.get("client") is True for guardrail, number in tried
            if (guardrail, number) not in kept
        )  # fmt: skip
        # An AI or external guardrail that was offered never gets as far as a draft.
        assert not any(guardrail["kind"] in ASKS and guardrail.get("client") for guardrail, _ in kept)
        if not kept:
            continue
        document = {"policy": f"p-{n}", "guardrails": [guardrail for guardrail, _ in kept]}
        version = services.publish(policy=services.save_draft(document=document))
        services.activate(version=services.sign(version=version))
        bundle = selectors.client_bundle(f"p-{n}").bundle
        text = written_out(bundle)
        in_force = {one["name"]: one for one in version.document["guardrails"]}
        for guardrail, number in kept:
            full = in_force[guardrail["name"]]
            runs_there = full["kind"] in (*RUN_BY_CLIENTS, "pii") and full["mode"] == "BLOCK"
            if guardrail.get("client") is True and runs_there:
                assert f'"n{number}"' in text, guardrail  # the control: whoever looks is not blind
                if full["kind"] != "pii":
                    assert text.count(number) > 1, guardrail
                went += 1
            else:
                assert number not in text, guardrail
                assert number not in bundle, guardrail
                stayed += 1
        assert not any(f'"kind":"{kind}"' in text for kind in ASKS)
    assert min(went, stayed, refused) >= 6, (went, stayed, refused)
    assert Policy.objects.filter(name__startswith="p-").count() > POLICIES // 2


def test_number_in_a_pattern_is_found_however_it_is_emitted() -> None:
    """The control of the search: without reading escapes and classes the pattern itself would not be seen."""
    rule = {"id": "r", "pattern": "123456789-é"}
    guardrail = {"name": "g", "kind": "regex", "client": True, "config": {"rules": [rule]}}
    services.install(document={"policy": "p", "guardrails": [guardrail]})
    bundle = selectors.client_bundle("p").bundle
    assert "123456789" not in bundle
    assert '"pattern":"123456789-é"' in written_out(bundle)
