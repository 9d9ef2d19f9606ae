"""A server of signed rules and guarded streams that a test commands: answers as the real one, and fails as it is told.

The gate behind it is the real one; only storage and limits are left out. What the library does with the real server is
tested with the extension.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from guardrails import keyring
from guardrails.bundle import make_bundle
from guardrails.client.subset import client_subset
from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from guardrails.signing import Type, canonical_bytes, digest_of, sign
from guardrails.statements import Subject, issue
from streaming.core.gate import BLOCKED, FOUND, REDACTED, RELEASE, Effect, Gate
from tests.client.pages import Call, Json, Reply
from tests.guardrails.test_bundle import ACTIVATION, ROOT, said_of_keys

ROOT_X = ROOT.public.x
USUAL = {"max_delta_chars": 1_000, "flush_ms": 800}
COVERED = {"max_delta_chars": 4_000, "flush_ms": 5_000}


@dataclass
class Session:
    """One stream as the server knows it; ``deltas`` by seq."""

    policy: Policy
    covered: bool
    gate: Gate
    deltas: list[str] = field(default_factory=list)
    visible: str = ""
    blocked: bool = False
    over: bool = False
    body: Json = field(default_factory=dict)
    """The last call's, whose answer is kept."""
    said: Json = field(default_factory=dict)


@dataclass
class Streams:
    """The server. ``fails(call)`` may answer in its place, or return False for "as usual"."""

    policy: Policy
    rules: Json = field(default_factory=dict)
    issuer: str = "sluicegate"
    serial: int = 9
    age_s: float = 0.0
    """How long ago what is active was stated."""
    keys_serial: int = 1
    revoked: tuple[str, ...] = ()
    sessions: dict[str, Session] = field(default_factory=dict)
    starts: dict[str, tuple[Json, Json]] = field(default_factory=dict)
    fails: Callable[[Call], Reply | bool | None] = lambda call: False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Make the client rules."""
        made = client_subset(self.policy, version=self.policy.version, digest=self.policy.digest)
        self.rules = json.loads(json.dumps(made.payload))  # a copy: a test may spoil it

    def answer(self, call: Call) -> Reply | None:
        """What the server says to a call."""
        with self.lock:
            failed = self.fails(call)
            if not isinstance(failed, bool):
                return failed
            path = call.path.partition("?")[0]
            if path == "/v1/rules":
                return 200, {"bundle": self.bundle()}, {"ETag": f'"{self.serial}"'}
            if path == "/.well-known/jwks.json":
                members = (keyring.entry(ROOT.public), keyring.entry(ACTIVATION.public, ROOT))
                said = said_of_keys(self.keys_serial, *self.revoked)
                return 200, keyring.KeySet(members, said).as_dict(), {}
            if path == "/v1/stream/start":
                return self._start(call)
            if path == "/v1/stream/status":
                session = self.sessions[call.path.partition("=")[2]]
                state = "COMPLETE" if session.over else "ACTIVE"
                return 200, {"state": state, "expected_seq": len(session.deltas) + 1}, {}
            return self._more(call, last=path.endswith("finish"))

    def bundle(self) -> str:
        """The bundle of the version that is active now."""
        rules = canonical_bytes(self.rules)
        version, digest = self.policy.version, self.policy.digest
        subject = Subject(self.issuer, "t", "", self.serial, version, digest, digest_of(rules))
        statement = issue(subject, now=time.time() - self.age_s, key=ACTIVATION)
        return make_bundle(activation=statement, client_rules=sign(rules, ROOT, Type.CLIENT_RULES), key=ACTIVATION)

    def _start(self, call: Call) -> Reply:
        key = call.headers["Idempotency-Key"]
        if key in self.starts:
            body, said = self.starts[key]
            assert body == call.body, "the same start has another body"
            return 201, said, {}
        client = cast(Json, call.body["client"])
        covered = bool(client["rules_version"])
        session = Session(self.policy, covered, Gate(self.policy, AppliesTo(str(call.body["kind"]))))
        name = f"session-{len(self.sessions) + 1}"
        self.sessions[name] = session
        policy = {"name": "t", "version": self.policy.version, "digest": self.policy.digest}
        said = {"session_id": name, "policy": policy, **self._fed(session, str(call.body["delta"]))}
        self.starts[key] = call.body, said
        return 201, said, {}

    def _more(self, call: Call, *, last: bool) -> Reply:
        session = self.sessions[str(call.body["session_id"])]
        seq, delta = int(str(call.body["seq"])), call.body.get("delta")
        if call.body == session.body:
            return 200, session.said, {}
        expected = len(session.deltas) + 1
        if session.over or seq != expected:
            error = {"code": "seq_conflict", "message": "Out of turn.", "expected_seq": expected}
            return 409, {"error": error}, {}
        said = self._fed(session, str(delta or ""), last=last, counts=delta is not None)
        session.over = last
        session.body, session.said = call.body, {**said, **({"summary": {"outcome": "allowed"}} if last else {})}
        return 200, session.said, {}

    def _fed(self, session: Session, delta: str, *, last: bool = False, counts: bool = True) -> Json:
        if counts:
            session.deltas.append(delta)
        effects: list[Effect] = [*session.gate.feed(delta), *(session.gate.finish() if last else [])]
        released = "".join(effect[1] for effect in effects if effect[0] in (RELEASE, REDACTED))
        session.visible += released
        session.blocked = session.blocked or any(effect[0] == BLOCKED for effect in effects)
        found = [effect[1] for effect in effects if effect[0] == FOUND]
        return {
            "state": "COMPLETE" if last else "ACTIVE",
            "seq": len(session.deltas),
            "released": released,
            "released_chars": len(session.visible),
            "held_chars": session.gate.held,
            "action": "block" if session.blocked else "redact" if found else "allow",
            "findings": [
                {"n": n, "guardrail": one.guardrail, "rule": one.rule, "start": one.start, "end": one.end}
                for n, one in enumerate(found, 1)
            ],
            "hints": COVERED if session.covered else USUAL,
        }

    def forget(self, session_id: str, keep: int) -> None:
        """The newest state is lost: the server stands where it was after ``keep`` deltas."""
        with self.lock:
            session = self.sessions[session_id]
            deltas = session.deltas[:keep]
            session.gate = Gate(session.policy, AppliesTo.RESPONSE)
            session.deltas, session.visible = [], ""
            for delta in deltas:
                self._fed(session, delta)


def policy(*guardrails: Json, version: int = 7) -> Policy:
    """A policy named ``t``, published as this version."""
    entries = [{"name": f"g{n}", **guardrail} for n, guardrail in enumerate(guardrails)]
    return compile_policy({"policy": "t", "guardrails": entries}, version=version, digest=f"sha256:{version}")


SSN: Json = {"kind": "pii", "action": "redact", "client": True, "config": {"entities": {"ssn": True}}}
HERON: Json = {
    "kind": "regex",
    "action": "block",
    "client": True,
    "config": {"rules": [{"id": "heron", "pattern": "project blue heron", "must_match": ["project blue heron"]}]},
}
