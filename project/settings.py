"""Settings, all from the environment; composition only.

Without any variable set: SQLite and generated secrets in the data directory, no broker (``manage.py demo`` starts an
embedded one). In production the same code with ``DATABASE_URL`` and ``REDIS_URL`` (README, "Production").
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import dj_database_url
import django_stubs_ext
from csp.constants import NONCE, NONE, SELF
from django.templatetags.static import static

from project import environment
from project.logs import logging_config
from streaming.conf import Conf

django_stubs_ext.monkeypatch()

BASE_DIR = Path(__file__).resolve().parent.parent
SLUICEGATE_DATA_DIR = environment.data_dir(BASE_DIR)
SLUICEGATE_DEMO = environment.flag("SLUICEGATE_DEMO")
SLUICEGATE_PRODUCTION = os.environ.get("SLUICEGATE_ENV", "").strip().lower() == "production"
SECRET_KEY, SLUICEGATE_SECRET_KEY_GENERATED = environment.secret_key(SLUICEGATE_DATA_DIR)
SLUICEGATE_VERSION_KEY_FILE = os.environ.get("SLUICEGATE_VERSION_KEY_FILE", "")
SLUICEGATE_TEXT_KEYS = os.environ.get("SLUICEGATE_TEXT_KEYS", "").replace(",", " ").split()
SLUICEGATE_MASK_KEYS = environment.words("SLUICEGATE_MASK_KEYS")
SLUICEGATE_FALLBACKS = environment.words("SLUICEGATE_FALLBACKS")
SLUICEGATE_GATEWAY_MEDIA = environment.words("SLUICEGATE_GATEWAY_MEDIA")
SLUICEGATE_UPSTREAMS_AT_ONCE = environment.counts("SLUICEGATE_UPSTREAMS_AT_ONCE")
SLUICEGATE_AUDIT_HEADS_FILE = os.environ.get("SLUICEGATE_AUDIT_HEADS_FILE", "")
SLUICEGATE_AUDIT_HEADS_EVERY_S = float(os.environ.get("SLUICEGATE_AUDIT_HEADS_EVERY_S") or 3_600)
SLUICEGATE_RETENTION = os.environ.get("SLUICEGATE_RETENTION", "")
SLUICEGATE_AUDIT_KEY_FILE = os.environ.get("SLUICEGATE_AUDIT_KEY_FILE", "")
SLUICEGATE_HOOK_HOSTS = [host for host in os.environ.get("SLUICEGATE_HOOK_HOSTS", "").replace(",", " ").split() if host]
SLUICEGATE_KEYRING_FILE = os.environ.get("SLUICEGATE_KEYRING_FILE", "")
SLUICEGATE_ISSUER = os.environ.get("SLUICEGATE_ISSUER", "").strip() or "sluicegate"
SLUICEGATE_ACTIVATION_KEY_FILE = os.environ.get("SLUICEGATE_ACTIVATION_KEY_FILE", "")
SLUICEGATE_FOUR_EYES = environment.flag("SLUICEGATE_FOUR_EYES")
vars().update(environment.numbers("SLUICEGATE_", asdict(Conf())))  # limits and times, docs/settings.md
DEBUG = environment.flag("DEBUG")
ALLOWED_HOSTS = environment.words("ALLOWED_HOSTS") or ["localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = environment.words("CSRF_TRUSTED_ORIGINS")

INSTALLED_APPS = [
    "daphne",
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    "csp",
    "django_htmx",
    "template_partials",
    "waffle",
    "guardrails",
    "streaming",
    "project",  # for its commands: `manage.py demo`
]

MIDDLEWARE = [
    "project.middleware.SecurityMiddleware",
    "project.middleware.CorrelationMiddleware",
    "project.middleware.PolicyMiddleware",
    "streaming.api.edge.EdgeMiddleware",
    "project.middleware.StaticFilesMiddleware",
    "project.middleware.SessionMiddleware",
    "project.middleware.CommonMiddleware",
    "project.middleware.CsrfViewMiddleware",
    "project.middleware.AuthenticationMiddleware",
    "project.middleware.MessageMiddleware",
    "project.middleware.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "project.middleware.DatabaseAwayMiddleware",
]

ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"  # for who came to the login without a page in mind

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
            ],
        },
    },
]

# -- stores --------------------------------------------------------------------------------------------------------

if DATABASE_URL := os.environ.get("DATABASE_URL", ""):
    DATABASES = {"default": dj_database_url.parse(DATABASE_URL, conn_max_age=0, conn_health_checks=True)}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(SLUICEGATE_DATA_DIR / "sluicegate.sqlite3"),
            "OPTIONS": {
                # several processes write: readers never wait (WAL), writers queue for the lock and do not deadlock
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=4000;",
            },
        }
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = os.environ.get("REDIS_URL", "")
if REDIS_URL:
    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "streaming.layer.PatientLayer",
            "CONFIG": {"hosts": [REDIS_URL], "prefix": "sluicegate"},
        }
    }
else:
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

# Flags are read afresh for every request: an admin's change is seen at once, whichever process serves it.
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "flags": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
}
WAFFLE_CACHE_NAME = "flags"
WAFFLE_FLAG_MODEL = "streaming.RolloutFlag"

CELERY_BROKER_URL = REDIS_URL or None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_TIME_LIMIT = 120
CELERY_TASK_SOFT_TIME_LIMIT = 90
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker waits for its broker however long that takes
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 300,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "priority_steps": [0, 3, 5, 7],
    "queue_order_strategy": "priority",
}
CELERY_TASK_PUBLISH_RETRY = False  # a request never waits for a broker that is down: the sweep queues it later
CELERY_BEAT_SCHEDULE = {
    "sweep": {"task": "streaming.tasks.sweep", "schedule": 10.0},
    "purge": {"task": "streaming.tasks.purge", "schedule": 3_600.0},
    "watch_rollouts": {"task": "streaming.tasks.watch_rollouts", "schedule": 30.0},
    "renew_statements": {"task": "guardrails.tasks.renew_statements", "schedule": 900.0},
    "keep_audit_head": {"task": "streaming.tasks.keep_audit_head", "schedule": SLUICEGATE_AUDIT_HEADS_EVERY_S},
}
CELERY_BEAT_SCHEDULE_FILENAME = str(SLUICEGATE_DATA_DIR / "celerybeat-schedule")

# -- web -----------------------------------------------------------------------------------------------------------

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = os.environ.get("STATIC_ROOT") or None  # only to collect files for a proxy; ADR 0002
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
WHITENOISE_MAX_AGE = 0
WHITENOISE_ALLOW_ALL_ORIGINS = False
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, NONCE],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "object-src": [NONE],
    }
}
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
if SLUICEGATE_PRODUCTION:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = environment.flag("SECURE_SSL_REDIRECT", default=True)
    SECURE_REDIRECT_EXEMPT = [r"^health$", r"^ready$", r"^metrics$"]
    SECURE_HSTS_SECONDS = int(os.environ.get("SECURE_HSTS_SECONDS", "3600"))
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
DATA_UPLOAD_MAX_MEMORY_SIZE = 1_048_576

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LOGGING = logging_config(json_lines=environment.flag("SLUICEGATE_LOG_JSON", default=SLUICEGATE_PRODUCTION))
LOGGING_CONFIG = "logging.config.dictConfig"

UNFOLD = {
    "SITE_TITLE": "Sluicegate",
    "SITE_HEADER": "Sluicegate",
    "SITE_SUBHEADER": "Guardrails for streaming answers",
    "SHOW_HISTORY": True,
    "DASHBOARD_CALLBACK": "streaming.dashboard.page.dashboard",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("icon.svg")}],
    "STYLES": [lambda request: static("admin-look/focus.css")],
    # The pages' one accent (static/css/sluicegate.css); 500 is read on dark ground, 600 on light and under white.
    "COLORS": {
        "primary": {
            "50": "#f0f9fa",
            "100": "#dff0f1",
            "200": "#bfe2e5",
            "300": "#8fd0d6",
            "400": "#66c7d0",
            "500": "#3fb0bb",
            "600": "#0b6670",
            "700": "#0a565f",
            "800": "#08464d",
            "900": "#06383e",
            "950": "#04252a",
        }
    },
}
