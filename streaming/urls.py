"""Routes of the pages for people; calls for programs are under ``streaming.api``."""

from __future__ import annotations

from django.urls import path

from streaming import views

urlpatterns = [
    path("", views.demo, name="demo"),
    path("compare/", views.compare, name="compare"),
    path("welcome/", views.welcome, name="welcome"),
]
