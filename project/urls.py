"""All routes of the HTTP side."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("audit/", include("streaming.audit.screens.urls")),
    path("", include("streaming.api.urls")),
    path("", include("streaming.urls")),
]
