"""Composition: settings, routes and processes. Nothing else in the tree imports this package."""

from project.celery import app as celery_app

__all__ = ["celery_app"]
