"""What has to be in the database before anybody can be guarded: tables and the starter policies.

Exists so that the demo and the terminal client begin in the same way. Every step may be repeated: a second start
changes nothing, keeps what has been published since, and goes on where an earlier one was cut off.
"""

from __future__ import annotations

import json
from pathlib import Path

from django.core.management import call_command

from guardrails import services
from guardrails.models import Policy, PolicyVersion
from guardrails.policy import normalise

STARTERS = Path(__file__).parent / "starters"


def prepare_database() -> None:
    """Make the tables that are missing, put the starter policies to work, and say again what is at work.

    The last because nothing renews a statement while this machine is off.
    """
    call_command("migrate", interactive=False, verbosity=0)
    for file in sorted(STARTERS.glob("*.json")):
        install_starter(json.loads(file.read_text(encoding="utf-8")))
    for policy in Policy.objects.filter(activation__isnull=True, active_version__isnull=False):
        assert policy.active_version is not None
        services.activate(version=policy.active_version, note="Activated before there were statements.")
    services.renew_statements()


def install_starter(document: dict[str, object]) -> None:
    """Publish, sign and activate a starter policy, unless a version of it was at work here before.

    Before, not now: what somebody has put to work in its place stays. A starter that is new in this release is
    activated.
    """
    wanted = normalise(document)
    activated = PolicyVersion.objects.filter(policy__name=wanted["policy"], activations__isnull=False).distinct()
    if not any(version.document == wanted for version in activated):
        services.install(document=document)
