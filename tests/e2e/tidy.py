"""Rows that a visitor leaves nowhere, for the pictures: a policy on its way to its second version, its shadow, an
upstream, a flag, a guardrail that was moved to a later lane."""

from __future__ import annotations

TIDY = """
from django.contrib.auth.models import Group, User
from guardrails.models import Policy
from guardrails.services import activate, publish, save_draft, sign
from streaming.flags import RolloutFlag
from streaming.models import Demotion
from streaming.upstreams import Upstream

def draft(description, *rules):
    config = {"rules": [{"id": name, "pattern": pattern, "must_match": [example]} for name, pattern, example in rules]}
    guardrail = {"name": "plans", "kind": "regex", "action": "redact", "config": config}
    return save_draft(document={"policy": "support", "description": description, "guardrails": [guardrail]})

author = User.objects.order_by("pk").first()
heron = ("heron", "(?i)project blue heron", "Project Blue Heron")
first = publish(policy=draft("What our help desk may say.", heron), by=author, notes="The first one.")
sign(version=first, by=author)
activate(version=first, by=author)
draft("What our help desk may say and show.", ("heron", "(?i)(project )?blue heron", "blue heron"),
      ("ticket", "TCK-[0-9]{6}", "TCK-004711"))
Upstream.objects.create(name="vendor", dialect="openai", base_url="http://127.0.0.1:9/v1",
                        model_names="model-a, model-b", enabled=False)
RolloutFlag.objects.create(name="compare-for-all", note="Who sees the comparison.")
Demotion.objects.create(policy_name="support", policy_version=1, policy_digest=first.digest, guardrail="tone",
                        declared="sentence", checkpoint="deferred", p95_ms=412.5, measurements=300)
"""
