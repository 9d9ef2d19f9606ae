"""What the rule form asks the server while somebody types, and the draft as a file to download.

The answer names form fields, not paths, and carries markup that templates have escaped; the page's script only puts it
where it belongs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from guardrails.admin.rules.envelope import read
from guardrails.admin.rules.form import as_file, stored_document
from guardrails.admin.rules.live import TYPING_BUDGET_S, Facts, examine_draft
from guardrails.admin.rules.nodes import home_of
from guardrails.admin.rules.reading import Reading, pairs_from_json
from guardrails.kinds.base import all_kinds
from guardrails.models import Policy
from guardrails.performance import PerformanceCharacteristics

TEMPLATES = "admin/guardrails/policy"
MAX_BYTES = 1_048_576


def lint(request: HttpRequest) -> JsonResponse:
    """Examine the posted fields (a JSON list of pairs): problems by field name, facts as markup by item name."""
    if request.method != "POST":
        return JsonResponse({"detail": "POST only"}, status=405, headers={"Allow": "POST"})
    try:
        if len(body := request.body) > MAX_BYTES:
            raise RequestDataTooBig
        reading = Reading(pairs_from_json(body))
    except RequestDataTooBig:
        return JsonResponse({"detail": "The form is larger than 1 MB."}, status=413)
    except ValueError as error:
        return JsonResponse({"detail": f"Not the fields of the form: {error}."}, status=400)
    document = read(reading)
    facts = examine_draft(document, budget_s=TYPING_BUDGET_S)
    return JsonResponse(
        {
            "problems": _by_name({**facts.problems, **reading.problems}, reading),
            "slots": {name: markup.strip() for name, markup in _slots(facts, reading, document).items()},
            "summary": render_to_string(f"{TEMPLATES}/summary.html", {"facts": facts}),
            "file": as_file(facts.document) if facts.document else "",
            "unfinished": facts.unfinished,
        }
    )


def policy_file(policy: Policy) -> HttpResponse:
    """What editing begins with, as a policy file."""
    return HttpResponse(
        as_file(stored_document(policy)) + "\n",
        content_type="application/json; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{policy.name}.json"'},
    )


def _by_name(problems: dict[str, str], reading: Reading) -> dict[str, str]:
    """Each problem under the field that it is about; what is about none is under the form's own name."""
    out: dict[str, str] = {}
    for path, message in problems.items():
        home = home_of(path, reading.names)
        name = reading.names[home]
        rest = path.removeprefix(home).lstrip(".")
        words = f"{rest}: {message}" if rest else message
        out[name] = f"{out[name]} {words}" if name in out else words
    return out


def _slots(facts: Facts, reading: Reading, document: Mapping[str, object]) -> dict[str, str]:
    """Markup for each rule that has a place of its own, and for each guardrail."""
    out: dict[str, str] = {}
    for path, rule in facts.rules.items():
        if path in reading.names:
            told = {"facts": rule, "speed": _speed(document, path)}
            out[reading.names[path]] = render_to_string(f"{TEMPLATES}/rule_facts.html", told)
    for path, report in facts.guardrails.items():
        beside = [
            rule
            for rule in report.rules
            if not any(
                known.report and known.report.id == rule.id
                for at, known in facts.rules.items()
                if at.startswith(path + ".") and at in reading.names
            )
        ]
        widest = max(report.rules, key=lambda rule: rule.holds, default=None)
        shown = {"report": report, "beside": beside, "widest": widest}
        out[reading.names[path]] = render_to_string(f"{TEMPLATES}/guardrail_facts.html", shown)
    for path in facts.skipped:
        out[reading.names[path]] = render_to_string(f"{TEMPLATES}/guardrail_facts.html", {"skipped": True})
    return out


def _speed(document: Mapping[str, object], path: str) -> PerformanceCharacteristics | None:
    """What the kind of the guardrail around a rule promises about its speed."""
    entries = document["guardrails"]
    place = re.match(r"guardrails\[(\d+)\]", path)
    entry = entries[int(place[1])] if place and isinstance(entries, list) else {}
    kind = all_kinds().get(str(entry.get("kind")))
    return kind.get_performance_characteristics() if kind else None
