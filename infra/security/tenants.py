"""Logins of tenants in SQL: made, taken away, listed. What a tenant may see is infra/security/roles.py.

These need an administrator of the database: of the local stack its superuser, whose password only the stack's owner
can read; of another server whoever the URL names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg

from aos.codecs.errors import SettingsError
from aos.infra.database import link
from aos.infra.migrate import LOCK, ROLES, TENANT, migrate
from aos.infra.security.passwords import as_role, new_password, verifier, write_passfile
from aos.infra.security.roles import Statement, login_role, login_sql, no_login_sql, tenant_role

SUPERUSER = "postgres"
# What a URL for somebody else keeps of ours: how the server is known, not who we are.
KEPT = ("sslmode", "sslrootcert", "channel_binding")


@dataclass(frozen=True, slots=True)
class Login:
    """A tenant's way in. `password` is empty where it was written to a file, which the URL names."""

    tenant: str
    role: str
    url: str
    password: str


def grant(url: str, tenant: str, file: Path | None = None) -> Login:
    """Make the tenant's views, if there are none, and its login with a new password; an earlier one is good no more.

    `file`: where the password is written, for its owner alone, instead of being returned.
    """
    tenant_role(tenant)  # a name that cannot be is told before anything is done
    admin = as_role(url, SUPERUSER)
    _check_ready(admin)
    migrate(admin, tenants=[tenant])
    password = new_password()
    _run(admin, login_sql(tenant, verifier(password)))
    role, given = login_role(tenant), urlsplit(admin)
    place = given.netloc.rpartition("@")[2]
    asked = {name: value for name, value in parse_qsl(given.query) if name in KEPT}
    if file is not None:
        write_passfile(file.absolute(), place.rpartition(":")[0] or place, role, password)
        asked["passfile"], password = str(file.absolute()), ""
    theirs = given._replace(netloc=f"{quote(role)}@{place}", query=urlencode(asked))
    return Login(tenant, role, theirs.geturl(), password)


def revoke(url: str, tenant: str) -> None:
    """Take the tenant's login away and end its sessions; its views stay. SettingsError when it has none."""
    role = login_role(tenant)
    if role not in {found["login"] for found in listed(url)}:
        raise SettingsError("AOS5002", f"the tenant {tenant!r} has no login", "`aos tenants list` has them")
    _run(as_role(url, SUPERUSER), no_login_sql(tenant))


def listed(url: str) -> list[dict[str, Any]]:
    """Tenants who have views here, with their logins (none when it was never made or was taken away)."""
    with link(as_role(url, SUPERUSER)) as connection:
        connection.read_only = True
        rows = connection.execute(
            "SELECT name FROM public.aos_migration WHERE name LIKE %s ORDER BY name", (f"{TENANT}%",)
        ).fetchall()
        logins = dict(connection.execute("SELECT rolname, rolcanlogin FROM pg_roles").fetchall())
    tenants = [name.removeprefix(TENANT) for (name,) in rows]
    return [
        {
            "tenant": tenant,
            "role": tenant_role(tenant),
            "login": login_role(tenant) if logins.get(login_role(tenant)) else None,
        }
        for tenant in tenants
    ]


def _check_ready(url: str) -> None:
    """Refuse a server that lets everybody in without asking, where a login would be a promise that nobody keeps, and a
    database without roles: to make them changes who owns its tables, which is not what was asked for."""
    with link(url) as connection:
        asked = connection.pgconn.used_password or connection.pgconn.ssl_in_use
        made = connection.execute("SELECT to_regclass('public.aos_migration') IS NOT NULL").fetchone() == (
            True,
        )
        if made:
            made = bool(
                connection.execute("SELECT FROM public.aos_migration WHERE name = %s", (ROLES,)).rowcount
            )
    if not asked:
        raise SettingsError("AOS5010", "this database asks nobody who he is: logins would keep no one out",
                            "start it with `aos up --secure`")  # fmt: skip
    if not made:
        raise SettingsError("AOS5005", "the database has no roles", "run `aos migrate --roles`")


def _run(url: str, statements: Sequence[Statement]) -> None:
    with link(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        for statement in statements:
            try:
                connection.execute(statement)
            except psycopg.errors.InsufficientPrivilege as error:
                raise SettingsError("AOS5012", f"not an administrator: {error.diag.message_primary}",
                                    "name one in AOS_DATABASE_URL") from None  # fmt: skip
