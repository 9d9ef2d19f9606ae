"""The pages of the audit review: they read the request, ask for what is wanted, and choose the template.

Exists so that list, detail, queue, precision and chain share one way of asking who may, and one of refusing. Protects
the rule that every page works without a script: htmx only asks for a part of what a plain request gets whole.
"""

from __future__ import annotations

from uuid import UUID

from django import forms
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from guardrails.examples import EXAMPLE_CHARS, add_must_not_match, carries_examples
from guardrails.policy import PolicyError
from guardrails.services import Refused
from streaming import tasks
from streaming.audit import verification
from streaming.audit.people import NOTE_CHARS, REASON_CHARS, ReviewedMeanwhile, record_review, reveal_text
from streaming.audit.screens import access, export
from streaming.audit.screens import queue as queues
from streaming.audit.screens.access import is_fragment, needs, person
from streaming.audit.screens.detail import session_view
from streaming.audit.screens.filters import Cursor, FilterForm, Filters, page_of, query_of
from streaming.audit.screens.listing import choices, lines
from streaming.audit.screens.precision import records
from streaming.models import AuditSession, Finding, Review
from streaming.providers import base as providers

PAGE = 50
TABS = {
    "audit/sessions.html": "sessions",
    "audit/session.html": "sessions",
    "audit/queue.html": "queue",
    "audit/example.html": "queue",
    "audit/precision.html": "precision",
    "audit/chain.html": "chain",
}
BIGGEST_KEY = 2**63 - 1


def _page(
    request: HttpRequest, template: str, context: dict[str, object], *, status: int = 200, part: str = ""
) -> HttpResponse:
    """The whole page, or for htmx the part of its template that is named."""
    tab = TABS.get(template, "")
    if part and is_fragment(request):
        template = f"{template}#{part}"
    return render(request, template, {**context, "tab": tab, "may": access.abilities(request)}, status=status)


# -- the list ----------------------------------------------------------------------------------------------------------


@require_safe
@needs(*access.SESSIONS)
def sessions(request: HttpRequest) -> HttpResponse:
    """The list; ``?cursor=`` is a further page, for htmx its rows alone."""
    form = FilterForm(request.GET)
    context: dict[str, object] = {"form": form, "query": query_of(request.GET)}
    after, wrong = _cursor(request)
    if wrong or not form.is_valid():
        context |= {"lines": [], "next": None, "bad_cursor": wrong, "choices": choices(), "providers": _providers()}
        return _page(request, "audit/sessions.html", context, status=400, part="rows")
    filters = Filters.of(form)
    page = page_of(filters, after, PAGE)
    context |= {
        "filters": filters,
        "lines": lines(page.sessions),
        "next": page.following,
        "searched": page.searched,
        "further": after is not None,
    }
    if not is_fragment(request):
        context |= {"choices": choices(), "providers": _providers()}
    return _page(request, "audit/sessions.html", context, part="rows")


def _providers() -> list[str]:
    return sorted(providers.available())


def _cursor(request: HttpRequest) -> tuple[Cursor | None, bool]:
    said = request.GET.get("cursor", "")
    try:
        return (Cursor.parse(said) if said else None), False
    except (ValueError, OverflowError):
        return None, True


@require_safe
@needs(*access.SESSIONS)
def export_csv(request: HttpRequest) -> HttpResponseBase:
    """The filtered list as a spreadsheet."""
    return _export(request, export.CsvLines, "text/csv; charset=utf-8", "sessions.csv", export.csv_head())


@require_safe
@needs(*access.SESSIONS)
def export_jsonl(request: HttpRequest) -> HttpResponseBase:
    """The filtered list with all findings, one JSON object a line."""
    return _export(request, export.JsonLines, "application/jsonl; charset=utf-8", "sessions.jsonl")


def _export(request: HttpRequest, write: export.Write, kind: str, name: str, head: str = "") -> HttpResponseBase:
    form = FilterForm(request.GET)
    if not form.is_valid():
        return HttpResponseRedirect(f"{reverse('audit:sessions')}?{query_of(request.GET)}")
    response = StreamingHttpResponse(export.stream(Filters.of(form), write, head), content_type=kind)
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["X-Accel-Buffering"] = "no"
    return response


# -- one session -------------------------------------------------------------------------------------------------------


class ReasonForm(forms.Form):
    """Why somebody looks."""

    reason = forms.CharField(max_length=REASON_CHARS, strip=True, label="Why do you look?")


@require_safe
@needs(*access.SESSIONS)
def session(request: HttpRequest, session_id: UUID) -> HttpResponse:
    """Everything that is known of a session, its texts hidden."""
    view = session_view(_session(session_id))
    return _page(request, "audit/session.html", {"view": view, "form": ReasonForm()})


@require_POST
@needs(*access.REVEAL)
def reveal(request: HttpRequest, session_id: UUID) -> HttpResponse:
    """The same with its texts, once the log says who looks and why."""
    found, form = _session(session_id), ReasonForm(request.POST)
    revealed = None
    if form.is_valid():
        try:
            revealed = reveal_text(session_id=str(session_id), by=person(request), reason=form.cleaned_data["reason"])
        except ValueError as error:
            form.add_error("reason", str(error))
    view = session_view(found, revealed.texts if revealed else None)
    context: dict[str, object] = {"view": view, "form": form, "revealed": revealed is not None}
    return _page(request, "audit/session.html", context, status=200 if revealed else 422)


def _session(session_id: UUID) -> AuditSession:
    found = AuditSession.objects.select_related("prompt", "answer").filter(pk=session_id).first()
    if found is None:
        raise Http404("There is no such session.")
    return found


# -- the review queue --------------------------------------------------------------------------------------------------


class QueueForm(forms.Form):
    """Which findings are gone through; what is in no form is as if it had not been said."""

    show = forms.ChoiceField(required=False, choices=list(queues.SHOWS.items()))
    guardrail = forms.CharField(required=False, max_length=100)
    rule = forms.CharField(required=False, max_length=200)
    policy = forms.CharField(required=False, max_length=100)
    version = forms.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    at = forms.IntegerField(required=False, min_value=1, max_value=BIGGEST_KEY)
    go = forms.ChoiceField(required=False, choices=[("next", ""), ("back", "")])

    def wanted(self) -> queues.Wanted:
        """After ``is_valid``."""
        said = self.cleaned_data
        names = {name: said.get(name) or "" for name in ("guardrail", "rule", "policy")}
        return queues.Wanted(show=said.get("show") or queues.WAITING, version=said.get("version"), **names)

    @property
    def query(self) -> str:
        """Everything but the place, as a query string."""
        kept = {name: self.cleaned_data.get(name) for name in ("show", "guardrail", "rule", "policy", "version")}
        return urlencode({name: value for name, value in kept.items() if value not in ("", None)})


class VerdictForm(forms.Form):
    """A verdict on a finding; ``seen`` is the version of the review that the page showed."""

    label = forms.ChoiceField(choices=Review.Label.choices)
    note = forms.CharField(max_length=NOTE_CHARS, required=False)
    seen = forms.IntegerField(min_value=0, max_value=2**31 - 1)


@require_safe
@needs(*access.REVIEWS)
def queue(request: HttpRequest) -> HttpResponse:
    """A finding to judge: ``?at=`` names one, with ``go=next`` or ``go=back`` the one beside it."""
    form = QueueForm(request.GET)
    form.is_valid()
    reviewer, at, go = person(request).get_username(), form.cleaned_data.get("at"), form.cleaned_data.get("go")
    finding: Finding | None
    if at is not None and not go:
        finding = _finding(at)
    else:
        finding = queues.step(form.wanted(), reviewer, at=at, back=go == "back")
    ended = "" if finding is not None or at is None else "first" if go == "back" else "last"
    if ended and at is not None and not request.GET.get("stored"):  # at either end it stays until it is judged
        finding = Finding.objects.select_related("session").filter(pk=at).first()
    return _card(request, form, finding, ended=ended)


@require_POST
@needs(*access.REVIEW)
def review(request: HttpRequest, finding_id: int) -> HttpResponse:
    """Store a verdict and go on to the next finding; 409 with what the other said when somebody was faster."""
    form, verdict, finding = QueueForm(request.GET), VerdictForm(request.POST), _finding(finding_id)
    form.is_valid()
    if not verdict.is_valid():
        return _card(request, form, finding, wrong=_first_error(verdict), note=request.POST.get("note", ""), status=422)
    said = verdict.cleaned_data
    try:
        stored = record_review(
            finding=finding,
            label=Review.Label(said["label"]),
            note=said["note"],
            by=person(request),
            seen=said["seen"],
        )
    except ReviewedMeanwhile as error:
        return _card(request, form, finding, conflict=str(error), note=said["note"], status=409)
    if not is_fragment(request):
        return HttpResponseRedirect(f"{reverse('audit:queue')}?at={finding_id}&go=next&stored={stored.pk}&{form.query}")
    following = queues.step(form.wanted(), person(request).get_username(), at=finding_id)
    return _card(request, form, following, stored=stored, ended="" if following else "last")


def _card(request: HttpRequest, form: QueueForm, finding: Finding | None, *, status: int = 200, **more: object
          ) -> HttpResponse:  # fmt: skip
    if "stored" not in more and (key := request.GET.get("stored", "")).isdecimal() and len(key) < 19:
        more["stored"] = Review.objects.select_related("finding").filter(pk=int(key)).first()
    context: dict[str, object] = {
        "card": None if finding is None else queues.Card.of(finding),
        "wanted": form.wanted(),
        "query": form.query,
        "shows": queues.SHOWS,
        "labels": Review.Label,
        **more,
    }
    return _page(request, "audit/queue.html", context, status=status, part="card")


def _finding(finding_id: int) -> Finding:
    found = None
    if finding_id <= BIGGEST_KEY:
        found = Finding.objects.select_related("session").filter(pk=finding_id).first()
    if found is None:
        raise Http404("There is no such finding.")
    return found


def _first_error(form: forms.Form) -> str:
    name, errors = next(iter(form.errors.items()))
    return f"{name}: {errors[0]}"


class ExampleForm(forms.Form):
    """A text that the rule must not match; white space at its ends is a part of it."""

    text = forms.CharField(max_length=EXAMPLE_CHARS, strip=False)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(*access.REVIEWS)
def example(request: HttpRequest, finding_id: int) -> HttpResponse:
    """Add what a false positive hit to the examples of its rule, in the draft of its policy; for authors."""
    finding = _finding(finding_id)
    context: dict[str, object] = {
        "finding": finding,
        "carries": carries_examples(finding.kind),
        "newest": finding.reviews.order_by("-version").first(),
        "chars": EXAMPLE_CHARS,
    }
    if request.method != "POST":
        return _page(request, "audit/example.html", {**context, "form": ExampleForm()})
    if not request.user.has_perms(access.EXAMPLE):
        return access.refused(request, "Only who may write policies (an Author) adds an example to one.")
    form = ExampleForm(request.POST)
    if form.is_valid():
        try:
            policy = add_must_not_match(
                policy=finding.session.policy_name,
                guardrail=finding.guardrail,
                rule=finding.rule,
                text=form.cleaned_data["text"],
                by=person(request),
            )
        except (Refused, PolicyError) as error:
            form.add_error(None, f"Nothing was added: {error}.")
        else:
            return _page(request, "audit/example.html", {**context, "form": None, "policy": policy})
    return _page(request, "audit/example.html", {**context, "form": form}, status=422)


# -- precision, chain --------------------------------------------------------------------------------------------------


@require_safe
@needs(*access.REVIEWS)
def precision(request: HttpRequest) -> HttpResponse:
    """How often each rule was right, by version."""
    return _page(request, "audit/precision.html", {"records": records()})


@require_http_methods(["GET", "HEAD", "POST"])
@needs(*access.LOG)
def chain(request: HttpRequest) -> HttpResponse:
    """The newest verification of the whole log, and (POST) another one."""
    if request.method == "POST":
        check, new = verification.ask(by=person(request).get_username())
        if new and check.last_seq <= verification.SMALL:
            verification.run(check.pk)
        elif new and not tasks.queue_chain_check(check.pk):
            verification.not_queued(check.pk)
        if not is_fragment(request):
            return HttpResponseRedirect(reverse("audit:chain"))
    found = verification.latest()
    context: dict[str, object] = {
        "check": found,
        "running": found is not None and verification.is_open(found),
        "lost": found is not None and found.place is not None and not verification.is_open(found),
        "length": verification.log_length(),
        "kept": verification.FAULTS_KEPT,
    }
    return _page(request, "audit/chain.html", context, part="check")
