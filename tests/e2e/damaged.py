"""A demo in which nothing has happened yet, and then what no visitor may do: rows altered behind its back, texts and
patterns of a length that no form takes, a policy that nobody's key has signed.

For the pages that must still be whole then. All of it is done by one process beside the demo's, as somebody who owns
the database would do it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import UUID

from tests.e2e.server import INHERITED, ROOT, Demo

OUTSIDER, PASSWORD = "Outsider", "correct horse battery"
MILLION, LONG = 1_000_000, 30_000
HARM = f"""
from django.contrib.auth.models import User
from django.db import connection
from guardrails.findings import Action, Finding, Mode, Outcome
from guardrails.models import Policy, PolicyVersion
from guardrails.services import activate, publish, save_draft, sign
from streaming import sessions
from streaming.models import Message, Review
from streaming.sessions import Ending, NewSession, Visitor

rule = {{"id": "heron", "pattern": "grey heron"}}

def policy(name, **more):
    guardrail = {{"name": "birds", "kind": "regex", "config": {{"rules": [rule]}}}}
    return save_draft(document={{"policy": name, "guardrails": [guardrail], **more}})

def session(name, text, **found):
    values = {{"guardrail": "codenames", "kind": "regex", "rule": "heron", "category": "codename",
              "start": 3, "end": 14}}
    hit = Finding(**{{**values, **found}}, mode=Mode.BLOCK, action=Action.WARN, channel="text", n=1)
    ref = {{"name": "demo", "version": 1, "digest": Policy.objects.get(name="demo").active_version.digest}}
    new = NewSession(Visitor(client=name), text, ref, "scripted", "scripted", correlation_id=name)
    started = sessions.start_session(new)
    ended = Ending(Outcome.ALLOWED, Message.Status.COMPLETE, content=text, findings=(hit,), chars_in=len(text),
                   released=len(text), timing={{"arrivals": [[1, 2]], "calls": 1}})
    sessions.finish_streaming(session_id=started.session_id, ending=ended)
    return started.session_id

sick = publish(policy=policy("sick"))
sign(version=sick)
activate(version=sick)
long = publish(policy=policy("long", description="A" * 2_000), notes="N" * {LONG})
changed = dict(Policy.objects.get(name="long").versions.get().document)
changed["description"] = "D" * {LONG}
changed["guardrails"][0]["config"]["rules"][0]["pattern"] = "P" * {LONG}
Policy.objects.filter(name="long").update(draft=changed, description="D" * {LONG})
session("million", "W" * {MILLION})
noted = session("noted", "A project blue heron.")
Review.objects.create(finding_id=sessions.AuditSession.objects.get(pk=noted).findings.get().pk,
                      version=1, label="unclear", note="R" * {LONG}, by="somebody")
tampered = session("tampered", "An answer.", category="C" * 64)
session("waits", "Another answer.")
with connection.cursor() as cursor:
    cursor.execute("UPDATE streaming_auditsession SET released = released + 1 WHERE correlation_id = 'tampered'")
    cursor.execute("DROP TRIGGER guardrails_version_stays")
    cursor.execute("UPDATE guardrails_policyversion SET signature = 'x' || signature WHERE id = %s", [sick.pk])
User.objects.create_user({OUTSIDER!r}, password={PASSWORD!r}, is_staff=True)
"""


def harm(running: Demo) -> None:
    """Do all of it, once."""
    if not running.rows("select 1 from guardrails_policy where name = 'sick'"):
        beside(running, HARM)


def beside(running: Demo, script: str) -> None:
    """Run a script in a process beside the demo, on its database."""
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {"SLUICEGATE_DATA_DIR": str(running.data_dir)}
    command = [sys.executable, str(ROOT / "manage.py"), "shell", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


def session_of(running: Demo, name: str) -> str:
    """The id of the session with this correlation id."""
    ((key,),) = running.rows(f"select id from streaming_auditsession where correlation_id = '{name}'")
    return str(UUID(str(key)))


def finding_of(running: Demo, name: str) -> int:
    """The number of its finding's row."""
    key = UUID(session_of(running, name)).hex
    ((finding,),) = running.rows(f"select id from streaming_finding where session_id = '{key}'")
    assert isinstance(finding, int)
    return finding
