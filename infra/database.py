"""Connections to TimescaleDB, the same way everywhere, and one-shot queries.

Nothing here knows the sink or Faust: `aos sql` imports it in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from aos.agents.sdk.security import on_loopback
from aos.codecs.errors import SettingsError, TransientError

CONNECT_TIMEOUT_S = 5
# Dead peers are noticed by the kernel, not after minutes of TCP's patience.
LINK = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": "-c timezone=UTC -c synchronous_commit=on -c jit=off",
}


# What libpq says when one side does not accept the other; it gives such errors no code.
REFUSED = (
    "certificate verify failed", "does not match host name", "password authentication failed", "no pg_hba.conf entry",
    "no password supplied", "server does not support SSL", "is not permitted to log in", "root certificate file",
)  # fmt: skip
ENCRYPTED = ("require", "verify-ca", "verify-full")


def check_url(url: str, *, allow_plaintext: bool = False) -> None:
    """SettingsError for what is no URL, or would go in the clear to another machine. No error says the URL itself."""
    try:
        asked = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        detail = "database_url is no URL of PostgreSQL (not shown: a password may be in it)"
        raise SettingsError("AOS5002", detail, "write postgresql://user@host:port/database") from None
    names = str(asked.get("host") or "").split(",") + str(asked.get("hostaddr") or "").split(",")
    far = [name for name in names if name and not name.startswith(("/", "@")) and not on_loopback(name)]
    if far and asked.get("sslmode") not in ENCRYPTED and not allow_plaintext:
        raise SettingsError("AOS5009", f"database_url, {', '.join(far)}",
                            "add sslmode=verify-full and sslrootcert to AOS_DATABASE_URL")  # fmt: skip


def link(url: str, *, autocommit: bool = False) -> psycopg.Connection[Any]:
    """A connection in UTC with synchronous commits; TransientError AOS4002 when nobody answers, AOS5011 when one side
    does not believe the other."""
    try:
        return psycopg.connect(url, autocommit=autocommit, application_name="aos", **LINK)  # type: ignore[arg-type]
    except psycopg.OperationalError as error:
        refused = any(sign in str(error) for sign in REFUSED)
        raise TransientError("AOS5011" if refused else "AOS4002", first_line(error)) from error
    except psycopg.ProgrammingError:
        check_url(url, allow_plaintext=True)  # says it without the URL, which libpq's own sentence holds
        raise


async def link_async(url: str, name: str) -> psycopg.AsyncConnection[Any]:
    """The same for the event loop; `name` shows in pg_stat_activity. psycopg's own error when nobody answers."""
    check_url(url, allow_plaintext=True)
    return await psycopg.AsyncConnection.connect(url, autocommit=True, application_name=name, **LINK)  # type: ignore[arg-type]


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass(frozen=True, slots=True)
class Database:
    """A database by its URL."""

    url: str

    def query(self, sql: str, parameters: tuple[Any, ...] = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of one statement, in a transaction that cannot write."""
        with link(self.url) as connection:
            connection.read_only = True
            cursor = connection.execute(sql.encode(), parameters or None)
            if cursor.description is None:
                return [], []
            return [column.name for column in cursor.description], cursor.fetchall()

    def migrate(self) -> list[str]:
        """Bring the schema to this release; names of the migrations that ran."""
        from aos.infra.migrate import migrate

        return migrate(self.url)


def query(url: str, sql: str, parameters: tuple[Any, ...] = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
    """`Database.query` in one call."""
    return Database(url).query(sql, parameters)
