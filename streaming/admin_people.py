"""The admin's two pages on which people meet the record: looking at a session's texts, and judging a finding.

Exist apart from the lists because each is a step that stays in the audit log with a name. Protect two rules: a text is
masked everywhere in the admin until somebody with ``streaming.reveal_text`` has said why they look at it, and the page
that shows it is kept by no cache; and a reviewer who comes second sees the first review before anything is stored.
"""

from __future__ import annotations

from typing import cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db.models import Exists, OuterRef, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.html import format_html
from unfold.admin import ModelAdmin
from unfold.decorators import action
from unfold.widgets import UnfoldAdminRadioSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from streaming.audit.people import NOTE_CHARS, REASON_CHARS, ReviewedMeanwhile, record_review, reveal_text
from streaming.models import AuditSession, Finding, Message, Review

REVEAL, REVIEW = "streaming.reveal_text", "streaming.add_review"


def masked(message: Message | None) -> str:
    """What is said of a text that is not shown: how long it is."""
    if message is None or not message.content:
        return "none stored"
    return f"•••••• {len(message.content):,} characters, hidden"


class JudgedFilter(admin.SimpleListFilter):
    """Findings that somebody has judged, and those that wait."""

    title = "verdict"
    parameter_name = "judged"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        """What can be chosen."""
        return [("no", "Not judged"), *[(str(value), str(words)) for value, words in Review.Label.choices]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Finding]) -> QuerySet[Finding]:
        """By the newest review, which is the one that counts."""
        reviews = Review.objects.filter(finding=OuterRef("pk"))
        if self.value() == "no":
            return queryset.exclude(Exists(reviews))
        if self.value() in Review.Label.values:
            newest = reviews.order_by("-version").values("label")[:1]
            return queryset.alias(newest=newest).filter(newest=self.value())
        return queryset


class RevealForm(forms.Form):
    """Why somebody looks."""

    reason = forms.CharField(
        max_length=REASON_CHARS,
        widget=UnfoldAdminTextInputWidget({"autocomplete": "off", "dir": "auto"}),
        label="Why do you look?",
    )


class ReviewForm(forms.Form):
    """A verdict on a finding; ``seen`` is the version of the review that the page showed."""

    label = forms.ChoiceField(choices=Review.Label.choices, widget=UnfoldAdminRadioSelectWidget(), label="Verdict")
    note = forms.CharField(
        max_length=NOTE_CHARS,
        required=False,
        widget=UnfoldAdminTextareaWidget({"rows": 4, "dir": "auto"}),
        label="Note (optional)",
    )
    seen = forms.IntegerField(min_value=0, widget=forms.HiddenInput())


class RevealPage(ModelAdmin):  # type: ignore[misc]  # unfold carries no types
    """The page of a session that shows its texts to who says why."""

    actions_detail = ("reveal",)

    def has_reveal_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Whoever sees sessions and may look at texts."""
        return self.has_view_permission(request) and request.user.has_perm(REVEAL)

    @action(description="Reveal the texts", url_path="reveal", permissions=["reveal"])  # type: ignore[untyped-decorator]
    def reveal(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Asks why; writes it down; shows the texts, once."""
        session: AuditSession | None = self.get_object(request, object_id)
        if session is None:
            raise Http404
        form, revealed = RevealForm(request.POST or None), None
        if request.method == "POST" and form.is_valid():
            by = cast("User", request.user)
            try:
                revealed = reveal_text(session_id=str(session.pk), by=by, reason=form.cleaned_data["reason"])
            except ValueError as error:
                form.add_error("reason", str(error))
        context = {
            **self.admin_site.each_context(request),
            "title": f"Texts of session {session.pk}",
            "opts": self.opts,
            "session": session,
            "form": form,
            "masked": _masked(session),
            "revealed": revealed,
            "texts": [(_called(session, name), text) for name, text in (revealed.texts if revealed else {}).items()],
        }
        response = TemplateResponse(request, "admin/streaming/people/reveal.html", context)
        add_never_cache_headers(response)
        return response


def _called(session: AuditSession, name: str) -> str:
    """What a text is: what was checked for a client stands in the answer's place, also where it is a prompt."""
    answer = session.answer
    checked = session.prompt is None and answer is not None and answer.role == Message.Role.USER
    return "prompt" if name == "answer" and checked else name


def _masked(session: AuditSession) -> list[tuple[str, str]]:
    texts = (("prompt", session.prompt), ("answer", session.answer))
    shown = [(_called(session, name), text) for name, text in texts]
    return [(name, masked(text)) for at, (name, text) in enumerate(shown) if at or shown[1][0] != name]


class ReviewPage(ModelAdmin):  # type: ignore[misc]
    """The page of a finding on which it is judged."""

    actions_detail = ("review",)

    def has_review_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Whoever sees findings and may judge them."""
        return self.has_view_permission(request) and request.user.has_perm(REVIEW)

    @action(description="Judge this finding", url_path="review", permissions=["review"])  # type: ignore[untyped-decorator]
    def review(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Stores a verdict, or tells of the one that came before."""
        finding: Finding | None = self.get_object(request, object_id)
        if finding is None:
            raise Http404
        form = ReviewForm(request.POST) if request.method == "POST" else None
        if form is not None and form.is_valid() and self._judged(request, finding, form):
            return HttpResponseRedirect(reverse("admin:streaming_finding_change", args=[finding.pk]))
        reviews = list(finding.reviews.order_by("-version"))
        seen = reviews[0].version if reviews else 0
        if form is None:
            form = ReviewForm(initial={"seen": seen})
        else:  # whatever was sent stays, next to the newest review, which is what the reviewer now sees
            form.data = form.data.copy()  # type: ignore[attr-defined]  # a QueryDict
            cast("dict[str, object]", form.data)["seen"] = seen
        context = {
            **self.admin_site.each_context(request),
            "title": f"Finding {finding.n} of session {finding.session_id}",
            "opts": self.opts,
            "finding": finding,
            "reviews": reviews,
            "sees_notes": may_read_notes(request),
            "form": form,
        }
        response = TemplateResponse(request, "admin/streaming/people/review.html", context)
        add_never_cache_headers(response)  # it may show notes, which may quote a text
        return response

    def _judged(self, request: HttpRequest, finding: Finding, form: ReviewForm) -> bool:
        said = form.cleaned_data
        try:
            review = record_review(
                finding=finding,
                label=Review.Label(said["label"]),
                note=said["note"],
                by=cast("User", request.user),
                seen=said["seen"],
            )
        except ReviewedMeanwhile as error:
            form.add_error(None, str(error))
            return False
        messages.success(request, f"Stored: {review.get_label_display().lower()}.")
        return True


def may_read_notes(request: HttpRequest) -> bool:
    """Whoever judges findings, or sees reviews. A note is its writer's word, not a stored text of a session."""
    return request.user.has_perm(REVIEW) or request.user.has_perm("streaming.view_review")


def verdict_of(finding: Finding) -> str:
    """The newest review in words, for lists."""
    newest = max(finding.reviews.all(), key=lambda review: review.version, default=None)
    return f"{newest.get_label_display()}, {newest.by}" if newest else "not judged"


def verdict_link(finding: Finding) -> str:
    """The same as a link to the finding."""
    address = reverse("admin:streaming_finding_change", args=[finding.pk])
    return format_html('<a href="{}" class="underline">{}</a>', address, verdict_of(finding))
