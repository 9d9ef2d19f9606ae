"""What the rule form asks the server while somebody types, and the draft as a file to download.

The answer names form fields, not paths, and carries markup that templates have escaped; the page's script only puts it
where it belongs.
"""

from __future__ import annotations

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from guardrails.admin.rules.envelope import read
from guardrails.admin.rules.form import as_file
from guardrails.admin.rules.live import TYPING_BUDGET_S, Facts, examine_draft
from guardrails.admin.rules.nodes import home_of
from guardrails.admin.rules.reading import Reading, pairs_from_json
from guardrails.models import Policy

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
            "slots": _slots(facts, reading),
            "summary": render_to_string(f"{TEMPLATES}/summary.html", {"facts": facts}),
            "file": as_file(facts.document) if facts.document else "",
            "unfinished": facts.unfinished,
        }
    )


def policy_file(policy: Policy) -> HttpResponse:
    """The draft, or what is active, as a policy file."""
    document = policy.draft or (policy.active_version.document if policy.active_version else {})
    return HttpResponse(
        as_file(document) + "\n",
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


def _slots(facts: Facts, reading: Reading) -> dict[str, str]:
    """Markup for each rule that has a place of its own, and for each guardrail."""
    out: dict[str, str] = {}
    for path, rule in facts.rules.items():
        if path in reading.names:
            out[reading.names[path]] = render_to_string(f"{TEMPLATES}/rule_facts.html", {"facts": rule})
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
        told = {"report": report, "beside": beside, "widest": widest}
        out[reading.names[path]] = render_to_string(f"{TEMPLATES}/guardrail_facts.html", told)
    for path in facts.skipped:
        out[reading.names[path]] = render_to_string(f"{TEMPLATES}/guardrail_facts.html", {"skipped": True})
    return out
