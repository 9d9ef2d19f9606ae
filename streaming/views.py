"""The pages of the demo: live, compare, welcome.

Exists to show the gate at work: the live page is served with what the database knows and then driven by the session's
events over ``/ws/chat/``. Protects the rule that one view and one template serve the page and its fragments.
"""

from __future__ import annotations

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from django_htmx.http import HttpResponseClientRefresh

from guardrails import selectors as policies
from streaming import demotion, page
from streaming.compare import OFFERED
from streaming.conf import conf, demo_mode
from streaming.providers import base as providers
from streaming.providers.scripted import ALL_SCENARIOS


@require_safe
@never_cache
def demo(request: HttpRequest) -> HttpResponse:
    """``/``: the page; for htmx only what follows from a choice: the lanes of a policy (``?policy=NAME``) or the models
    of a provider (``?provider=NAME``).

    ``?conversation=ID`` shows a stored conversation to the visitor that it belongs to; anybody else gets an empty
    page with a note, the same one for a conversation that never was.
    """
    if not demo_mode() and not request.user.is_authenticated:
        # Following a redirect, htmx would put the whole login page where the lanes are.
        return HttpResponseClientRefresh() if _is_fragment(request) else redirect_to_login(request.get_full_path())
    if not request.session.session_key:
        # The socket finds the visitor by this cookie; without it a reload could not prove whose conversation it is.
        request.session.create()
    offered = providers.available()
    provider = offered.get(request.GET.get("provider", "")) or next(iter(offered.values()))
    if _is_fragment(request) and "provider" in request.GET:
        return render(request, "streaming/demo.html#models", {"models": provider.models})
    infos = page.policy_infos()
    wanted = request.GET.get("policy", "")
    info = next((i for i in infos if i.name == wanted), infos[0] if infos else None)
    asked_for = request.GET.get("conversation", "")
    stored = page.conversation_for(request, asked_for) if asked_for else None
    policy, trouble = None, ""
    if info is None:
        trouble = "No policy is active."
    else:
        try:
            policy = demotion.current(policies.active_policy(info.name))
        except policies.PolicyUnavailable as error:
            trouble = str(error)
    shown = stored or page.StoredConversation()
    context = {
        "infos": infos,
        "info": info,
        "policy": {"digest": policy.digest if policy else "", "error": trouble},
        "lanes": page.lanes(policy, shown),
        "conversation": shown,
        "timeline": shown.timeline,
        "missing": bool(asked_for) and stored is None,
        "providers": list(offered.values()),
        "models": provider.models,
        "scenarios": [{"name": name, "label": s.label, "prompt": s.prompt} for name, s in ALL_SCENARIOS.items()],
        "limits": conf(),
    }
    template = "streaming/demo.html#chosen_policy" if _is_fragment(request) else "streaming/demo.html"
    return render(request, template, context)


@require_safe
@never_cache
def compare(request: HttpRequest) -> HttpResponse:
    """``/compare/``: one scripted answer unguarded, checked when it is whole, and gated, on one clock."""
    if not demo_mode() and not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    if not request.session.session_key:
        request.session.create()  # as for the live page: the gated lane is a session of this visitor
    infos = page.policy_infos()
    wanted = request.GET.get("policy", "")
    context = {
        "infos": infos,
        "info": next((i for i in infos if i.name == wanted), infos[0] if infos else None),
        "scenarios": [{"name": name, "label": scenario.label} for name, scenario in OFFERED.items()],
        "limits": conf(),
    }
    return render(request, "streaming/compare.html", context)


@require_safe
def welcome(request: HttpRequest) -> HttpResponse:
    """``/welcome/``: what this is, its three faces with links, and what to try first. Open to everybody."""
    infos = page.policy_infos()
    real = [provider for provider in providers.available().values() if not provider.scripted]
    context = {"infos": infos, "real": real, "demo": demo_mode()}
    return render(request, "streaming/welcome.html", context)


def _is_fragment(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"
