"""The admin's page of providers: what is configured, what is wrong with it, and whose circuit is open.

Exists because providers stand in the environment, where nobody but who runs the servers can look. Protects the rules
that nothing is changed here, and that no secret is shown (``streaming.configured``). What is shown is what this web
process runs with; its siblings have the same environment or are set up wrongly.
"""

from __future__ import annotations

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from guardrails.admin.base import ReadOnlyAdmin
from streaming.configured import fallback_problems, shown
from streaming.models import ConfiguredProvider


@admin.register(ConfiguredProvider)
class ConfiguredProviderAdmin(ReadOnlyAdmin[ConfiguredProvider]):
    """One page instead of a list: there is no table behind it."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        """All providers."""
        if not self.has_view_permission(request) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": "Providers",
            "opts": self.opts,
            "providers": shown(),
            "problems": fallback_problems(),
        }
        return TemplateResponse(request, "admin/streaming/configuredprovider/page.html", context)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ConfiguredProvider]:
        """No rows: whoever asks for the page of one is told that it does not exist."""
        return ConfiguredProvider.objects.none()
