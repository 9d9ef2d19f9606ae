"""The admin's view of what was streamed: read-only records.

Protects the rule that audit records are not edited: sessions and findings can be looked at by those with the view
permission and changed by nobody here; texts are masked (``admin_people`` shows them to who says why).
"""

from __future__ import annotations

from typing import ClassVar, cast

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from unfold.admin import ModelAdmin, TabularInline

from streaming.admin_checks import DeferredCheckAdmin as DeferredCheckAdmin
from streaming.admin_demotions import DemotionAdmin as DemotionAdmin
from streaming.admin_flags import RolloutFlagAdmin as RolloutFlagAdmin
from streaming.admin_people import JudgedFilter, RevealPage, ReviewPage, masked, verdict_link, verdict_of
from streaming.admin_providers import ConfiguredProviderAdmin as ConfiguredProviderAdmin
from streaming.admin_shadow import ShadowAdmin as ShadowAdmin
from streaming.admin_upstreams import UpstreamAdmin as UpstreamAdmin
from streaming.models import AuditSession, Conversation, DeferredCheck, Finding, Message
from streaming.presentation import count
from streaming.shadow.report import why
from streaming.timeline import TimelineView

FINDINGS_SHOWN = 200
"""On the page of a session: a long text full of addresses has ten thousand."""


class ReadOnly:
    """Nothing can be added, changed or deleted."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """No."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """No."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """No."""
        return False


class FindingInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold carries no types
    """A session's findings, the first of them."""

    model = Finding
    extra = 0
    verbose_name_plural = f"findings (the first {FINDINGS_SHOWN})"
    fields = (
        "n",
        "guardrail",
        "rule",
        "category",
        "channel",
        "start",
        "end",
        "mode",
        "action",
        "would_have",
        "exposed",
        "verdict",
    )
    readonly_fields = ("verdict",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Finding]:
        """With their reviews."""
        rows = super().get_queryset(request).filter(n__lte=FINDINGS_SHOWN)
        return cast("QuerySet[Finding]", rows.prefetch_related("reviews"))

    @admin.display(description="Verdict")
    def verdict(self, finding: Finding) -> str:
        """What the newest review says, linked to the finding."""
        return verdict_link(finding)


class CheckInline(ReadOnly, TabularInline):  # type: ignore[misc]
    """A session's deferred checks."""

    model = DeferredCheck
    extra = 0
    fields = ("guardrail", "applies_to", "state", "attempts", "queued_at", "started_at", "finished_at", "error")


@admin.register(AuditSession)
class AuditSessionAdmin(ReadOnly, RevealPage):
    """One row per guarded stream."""

    list_display = ("id", "origin", "state", "outcome", "would_have", "policy_name", "policy_version", "provider",
                    "streaming", "fallback", "started_at", "released", "withheld")  # fmt: skip
    list_filter = ("state", "outcome", "would_have", "shadow_comparison", "origin", "policy_name", "shadow_version",
                   "provider", "streaming", "fallback")  # fmt: skip
    search_fields = ("id", "correlation_id", "client")
    date_hierarchy = "started_at"
    exclude = ("shadow", "timing", "first_token_ms", "hold_ms")
    readonly_fields = ("prompt_text", "answer_text", "pace", "provider_notices", "findings_in_all", "shadow_found")
    inlines: ClassVar[list[type[TabularInline]]] = [FindingInline, CheckInline]

    @admin.display(description="Prompt text")
    def prompt_text(self, session: AuditSession) -> str:
        """Its length."""
        return masked(session.prompt)

    @admin.display(description="Answer text")
    def answer_text(self, session: AuditSession) -> str:
        """Its length."""
        return masked(session.answer)

    @admin.display(description="Pace")
    def pace(self, session: AuditSession) -> str:
        """The timeline in a line; all of its points would be a page of numbers."""
        view = TimelineView.of(session.timing)
        if view.empty:
            return "not measured"
        return (
            f"{count(len(view.arrivals), 'arrival')}, the first after {view.first_token}; "
            f"{count(len(view.releases), 'release')}, the first after {view.first_release}; "
            f"{view.total} in all; at most {view.longest_hold} held"
        )

    @admin.display(description="Retries and other notices")
    def provider_notices(self, session: AuditSession) -> str:
        """What went wrong with providers on the way to the answer."""
        told = session.answer.metadata.get("notices", []) if session.answer else []
        return ", ".join(f"{provider}: {code} × {times}" for provider, code, times in told) or "none"

    @admin.display(description="Findings")
    def findings_in_all(self, session: AuditSession) -> str:
        """How many there are, and where they are when these are too many for the page."""
        number = session.findings.count()
        beyond = f"; the first {FINDINGS_SHOWN} are below, all of them in the export of /audit/"
        return f"{number:,}" + (beyond if number > FINDINGS_SHOWN else "")

    @admin.display(description="What the shadow found")
    def shadow_found(self, session: AuditSession) -> str:
        """The findings of the version that ran beside; none of them is the active version's."""
        if not session.shadow_version:
            return "no shadow ran"
        if not session.shadow:
            return "nothing is known of it"
        lines = [
            f"version {hit['version']}: {hit['guardrail']}/{hit['rule']}, "
            f"{hit['channel']} {hit['start']}-{hit['end']}, "
            f"{'would have ' + hit['would_have'] if hit['would_have'] else 'would only have recorded'}, "
            f"{hit['exposed']} characters shown"
            for hit in session.shadow["findings"]
        ]
        lines += [f"and {more} more"] if (more := session.shadow["more"]) else []
        lines += [words] if (words := why(session.shadow)) else []
        return format_html_join(mark_safe("<br>"), "{}", ((line,) for line in lines)) or "nothing"


@admin.register(Finding)
class FindingAdmin(ReadOnly, ReviewPage):
    """One row per hit; never the text that was hit."""

    list_display = ("session", "n", "guardrail", "rule", "category", "channel", "mode", "action", "would_have",
                    "exposed", "created", "verdict")  # fmt: skip
    list_filter = ("guardrail", "kind", "action", "mode", "would_have", JudgedFilter)
    search_fields = ("session__id", "rule")
    list_select_related = ("session",)
    list_display_links = ("session", "n")
    readonly_fields = ("verdict",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Finding]:
        """With their reviews."""
        return cast("QuerySet[Finding]", super().get_queryset(request).prefetch_related("reviews"))

    @admin.display(description="Verdict")
    def verdict(self, finding: Finding) -> str:
        """What the newest review says."""
        return verdict_of(finding)


class MessageInline(ReadOnly, TabularInline):  # type: ignore[misc]
    """A conversation's messages; their texts are shown by the page of a session."""

    model = Message
    extra = 0
    fields = ("created", "role", "status", "text", "provider", "model")
    readonly_fields = ("text",)

    @admin.display(description="Text")
    def text(self, message: Message) -> str:
        """Its length."""
        return masked(message)


@admin.register(Conversation)
class ConversationAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    """Conversations with their messages, masked."""

    list_display = ("id", "user", "client", "policy", "created")
    search_fields = ("id", "external_id")
    inlines: ClassVar[list[type[TabularInline]]] = [MessageInline]
