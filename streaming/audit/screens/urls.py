"""Routes under ``/audit/``."""

from __future__ import annotations

from django.urls import path

from streaming.audit.screens import views

app_name = "audit"
urlpatterns = [
    path("", views.sessions, name="sessions"),
    path("export.csv", views.export_csv, name="export-csv"),
    path("export.jsonl", views.export_jsonl, name="export-jsonl"),
    path("sessions/<uuid:session_id>/", views.session, name="session"),
    path("sessions/<uuid:session_id>/reveal", views.reveal, name="reveal"),
    path("review/", views.queue, name="queue"),
    path("findings/<int:finding_id>/review", views.review, name="review"),
    path("findings/<int:finding_id>/example", views.example, name="example"),
    path("precision/", views.precision, name="precision"),
    path("chain/", views.chain, name="chain"),
]
