"""Numbered migrations in one step: all or nothing, one runner at a time, files that were run must not change.

in: infra/sql/NNNN_name.sql (package data). Views are no migrations: they are made anew from infra/surface.py
whenever their text has changed, so that a view is only written down once.
errors: SettingsError AOS5005 when a file that was run has changed, is gone, or the database is of a newer release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg

from aos.codecs.errors import SettingsError
from aos.infra.database import link
from aos.infra.surface import surface_sql

LOCK = 0x_A05_51  # the advisory lock of all runners
VIEWS = "views"  # the name under which the views' text is remembered


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All files in order."""
    folder = resources.files("aos.infra") / "sql"
    found = [
        Migration(item.name, item.read_text()) for item in folder.iterdir() if item.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.name)


def migrate(url: str, files: Sequence[Migration] | None = None) -> list[str]:
    """Run what is missing, in one transaction under a lock; names of what ran, in order."""
    files = migrations() if files is None else files
    with link(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS public.aos_migration ("
            "name text PRIMARY KEY, sha256 text NOT NULL, ran_at timestamptz NOT NULL DEFAULT now())"
        )
        there = _there(connection)
        _check(files, there)
        ran = []
        for migration in files:
            if migration.name not in there:
                _run(connection, migration)
                ran.append(migration.name)
        views = Migration(VIEWS, surface_sql())
        if there.get(VIEWS) != views.sha256:
            _run(connection, views)
            ran.append(VIEWS)
        return ran


def _there(connection: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SELECT name, sha256 FROM public.aos_migration").fetchall())


def _check(files: Sequence[Migration], there: dict[str, str]) -> None:
    known = {migration.name: migration.sha256 for migration in files}
    for name, sha256 in there.items():
        if name == VIEWS:
            continue
        if name not in known:
            raise SettingsError(
                "AOS5005", f"{name} was run by another release", "use that release or a newer one"
            )
        if known[name] != sha256:
            raise SettingsError("AOS5005", f"{name} has changed since it was run", "add a new file instead")


def _run(connection: psycopg.Connection[Any], migration: Migration) -> None:
    connection.execute(migration.text.encode())
    connection.execute(
        "INSERT INTO public.aos_migration (name, sha256) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256, ran_at = now()",
        (migration.name, migration.sha256),
    )
