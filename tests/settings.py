"""The project's settings for tests: a data directory and a Valkey of their own, whatever the caller's environment says.

Exists because settings read the environment once, when they are imported. Protects the rule that tests touch neither
the data nor the stores nor the providers of whoever runs them. Each process of a parallel run imports this anew.
``TESTS_DATABASE_URL`` names a server for a run on another database than a file; tests of the stack start one.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from project.demo.valkey import choose_port, embedded

_OURS = ("SLUICEGATE_", "OPENAI_", "ANTHROPIC_", "OLLAMA_")
_ALONE = ("DATABASE_URL", "REDIS_URL", "DEBUG", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS")
# The one test that asks a real Ollama is told where; under another name, which processes of a parallel run inherit.
os.environ |= {f"REAL_{name}": value for name, value in os.environ.items() if name.startswith("OLLAMA_")}
for _name in [name for name in os.environ if name.startswith(_OURS) or name in _ALONE]:
    del os.environ[_name]

_made = Path(tempfile.mkdtemp(prefix="sluicegate-tests-"))
atexit.register(shutil.rmtree, _made, ignore_errors=True)
VALKEY, _url = embedded(_made, choose_port(_made), os.environ)
os.environ |= {"SLUICEGATE_DATA_DIR": str(_made), "REDIS_URL": _url}

if _server := os.environ.get("TESTS_DATABASE_URL"):
    os.environ["DATABASE_URL"] = _server

from project.settings import *  # noqa: E402, F403 - after the environment is in order
from project.settings import DATABASES  # noqa: E402

# A file, not memory: threads and asynchronous code then lock each other out as they do in real life.
if not _server:
    DATABASES["default"]["TEST"] = {"NAME": str(_made / "test.sqlite3")}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # users of tests log in all the time
