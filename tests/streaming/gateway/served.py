"""The gateway as clients meet it: a real server in a process of its own, before an upstream that the test plays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.prepared import fill
from tests.streaming.gateway.fake import Fake, upstream
from tests.streaming.real_server import ROOT, clean_environment, running

PREPARE_LIMIT_S = 280.0

POLICIES: list[dict[str, object]] = [
    {"policy": "open", "guardrails": []},
    {"policy": "crowded", "guardrails": []},
    {"policy": "strict", "guardrails": [{"name": "pii", "kind": "pii", "action": "redact"}]},
    {"policy": "masking", "restore_in_tools": ["send_mail"],
     "guardrails": [
         {"name": "pii", "kind": "pii", "action": "mask", "applies_to": ["prompt"]},
         {"name": "answers", "kind": "pii", "action": "redact", "applies_to": ["response"]},
     ]},
    {"policy": "planted",
     "guardrails": [
         {"name": "pii", "kind": "pii", "action": "mask"},
         {"name": "secrets", "kind": "secrets", "action": "mask"},
         {"name": "code_names", "kind": "keywords", "action": "mask", "config": {"keywords": ["Blue Heron"]}},
     ]},
    {"policy": "watching",
     "guardrails": [
         {"name": "words", "kind": "keywords", "mode": "MONITOR", "action": "block",
          "config": {"keywords": ["Blue Heron", "Hello"]}}
     ]},
    {"policy": "wary", "guardrails": [{"name": "wary", "kind": "prompt_injection", "action": "block"}]},
    {
        "policy": "stopping",
        "guardrails": [
            {"name": "words", "kind": "regex", "action": "block",
             "config": {"rules": [{"id": "heron", "pattern": "project blue heron", "ignore_case": True}]}}
        ],
    },
]  # fmt: skip
_PREPARE = """
import json, sys
import django
django.setup()
from guardrails import services
from guardrails.bootstrap import prepare_database
prepare_database()
keys = {}
for document in json.loads(sys.argv[1]):
    services.install(document=document)
    name = document["policy"]
    limits = dict(calls_per_minute=1_000_000)
    keys[name] = services.create_api_key(name=name, scopes=["gateway"], policy=name, **limits)[1]
print(json.dumps(keys))
"""


AT_ONCE = 8
"""Answers that a key may have under way."""
OPENED: list[Callable[[], object]] = []
"""How the clients of a test are closed."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Its address, a key for each policy, and the upstream behind it."""

    url: str
    keys: dict[str, str]
    fake: Fake


@contextmanager
def gateway(data_dir: Path, redis_url: str, **more: str) -> Iterator[Gateway]:
    """Prepare, start, wait until it answers, stop."""
    with upstream() as fake:
        env = clean_environment()
        env |= {
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "SLUICEGATE_DATA_DIR": str(data_dir),
            "SLUICEGATE_SCRIPTED_RATE": "2000",
            "SLUICEGATE_GATEWAY_AT_ONCE": str(AT_ONCE),
            "REDIS_URL": redis_url,
            "OPENAI_BASE_URL": f"{fake.url}/v1",
            "OPENAI_API_KEY": "upstream-key",
            "ANTHROPIC_BASE_URL": fake.url,
            "ANTHROPIC_API_KEY": "upstream-key",
            "OLLAMA_HOST": fake.url,
            **more,
        }
        fill(data_dir)
        prepared = subprocess.run(
            [sys.executable, "-c", _PREPARE, json.dumps(POLICIES)],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=PREPARE_LIMIT_S, check=False,
        )  # fmt: skip
        assert prepared.returncode == 0, prepared.stderr
        with running(data_dir, env) as (port, _):
            yield Gateway(f"http://127.0.0.1:{port}", json.loads(prepared.stdout.splitlines()[-1]), fake)
