"""Numbered migrations in one step: all or nothing, one runner at a time, files that were run must not change.

in: infra/sql/NNNN_name.sql (package data). Views are no migrations: they are made anew from infra/surface.py
whenever their text has changed, so that a view is only written down once. Roles and the tenants' views are made by the
same step when tenants are named, and from then on always (infra/security/roles.py).
errors: SettingsError AOS5005 when a file that was run has changed, is gone, or the database is of a newer release;
    AOS5012 when the roles would have more than their plan says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from aos.codecs.errors import SettingsError
from aos.infra.database import link
from aos.infra.security import roles
from aos.infra.security.excess import check_nothing_more
from aos.infra.surface import surface_sql

LOCK = 0x_A05_51  # the advisory lock of all runners
VIEWS = "views"  # the name under which the views' text is remembered
ROLES = "roles"  # that roles were made here; the text is what they may
TENANT = "tenant "  # stands before a tenant's name; the text is that of its views


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


def migrate(
    url: str, files: Sequence[Migration] | None = None, *, tenants: Iterable[str] | None = None
) -> list[str]:
    """Run what is missing, in one transaction under a lock; names of what ran, in order.

    `tenants`: make the roles too, and a role for each of these tenants; needs a superuser, or who may make roles.
    Once there are roles, they and every tenant's views are kept up to date without being named.
    """
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
        views = Migration(VIEWS, surface_sql())
        missing = [migration for migration in files if migration.name not in there]
        missing += [views] if there.get(VIEWS) != views.sha256 else []
        known = [name.removeprefix(TENANT) for name in there if name.startswith(TENANT)]
        wanted = sorted({*known, *(tenants or ())})
        guarded = tenants is not None or ROLES in there
        if guarded:
            _before(connection, known if missing else ())
        for migration in missing:
            _run(connection, migration, roles.OWNER if guarded else None)
        ran = [migration.name for migration in missing]
        return ran + (_after(connection, wanted, () if missing else known, there) if guarded else [])


def _before(connection: psycopg.Connection[Any], stale: Iterable[str]) -> None:
    """The roles, with the owner able to migrate; views that stand on what may change are dropped."""
    statements = [*roles.roles_sql(), *roles.owned_sql()]
    for tenant in stale:
        statements += roles.drop_tenant_sql(tenant)
    _execute(connection, statements)


def _after(
    connection: psycopg.Connection[Any], tenants: Sequence[str], kept: Iterable[str], there: dict[str, str]
) -> list[str]:
    """Rights, which are set anew each time, and the views of tenants who have none or others (`kept` have some)."""
    _execute(connection, [*roles.owned_sql(), *roles.nothing_to_all_sql(), *roles.grants_sql()])
    ran = []
    if ROLES not in there:
        _remember(connection, Migration(ROLES, ""))
        ran.append(ROLES)
    for tenant in tenants:
        statements = [*roles.drop_tenant_sql(tenant), *roles.tenant_sql(tenant)]
        made = Migration(f"{TENANT}{tenant}", ";\n".join(each.as_string(connection) for each in statements))
        if tenant not in kept or there.get(made.name) != made.sha256:
            _execute(connection, statements)
            _remember(connection, made)
            ran.append(made.name)
    check_nothing_more(connection, tenants)
    return ran


def _execute(connection: psycopg.Connection[Any], statements: Iterable[roles.Statement]) -> None:
    for statement in statements:
        connection.execute(statement)


def _there(connection: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SELECT name, sha256 FROM public.aos_migration").fetchall())


def _check(files: Sequence[Migration], there: dict[str, str]) -> None:
    known = {migration.name: migration.sha256 for migration in files}
    for name, sha256 in there.items():
        if name in (VIEWS, ROLES) or name.startswith(TENANT):
            continue
        if name not in known:
            raise SettingsError(
                "AOS5005", f"{name} was run by another release", "use that release or a newer one"
            )
        if known[name] != sha256:
            raise SettingsError("AOS5005", f"{name} has changed since it was run", "add a new file instead")


def _run(connection: psycopg.Connection[Any], migration: Migration, owner: str | None) -> None:
    if owner is not None:
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))
    connection.execute(migration.text.encode())
    if owner is not None:
        connection.execute("RESET ROLE")
    _remember(connection, migration)


def _remember(connection: psycopg.Connection[Any], migration: Migration) -> None:
    connection.execute(
        "INSERT INTO public.aos_migration (name, sha256) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256, ran_at = now()",
        (migration.name, migration.sha256),
    )
