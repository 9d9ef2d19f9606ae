"""A data directory with tables and starter policies, for servers that begin with a second start.

Making them takes seconds of a processor, and every server of the tests needs them: they are made once per process, in
the way in which ``manage.py demo`` makes them. The first start has a test of its own (``test_demo_command``).
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 360.0
_INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR")
PREPARE = "import django; django.setup(); from guardrails import bootstrap; bootstrap.prepare_database()"


def fill(folder: Path) -> None:
    """Put a copy into a directory in which nothing was prepared yet: a database in a file, and the keys that signed."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)


@functools.cache
def _made() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sluicegate-prepared-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    env |= {"DJANGO_SETTINGS_MODULE": "project.settings", "PYTHONPATH": str(ROOT), "SLUICEGATE_DATA_DIR": str(folder)}
    made = subprocess.run(
        [sys.executable, "-c", PREPARE],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False, umask=0o077,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-4000:]
    return folder
