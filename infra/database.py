"""Connections to TimescaleDB, the same way everywhere, and one-shot queries.

Nothing here knows the sink or Faust: `aos sql` imports it in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from aos.codecs.errors import TransientError

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


def link(url: str, *, autocommit: bool = False) -> psycopg.Connection[Any]:
    """A connection in UTC with synchronous commits; TransientError AOS4002 when nobody answers."""
    try:
        return psycopg.connect(url, autocommit=autocommit, application_name="aos", **LINK)  # type: ignore[arg-type]
    except psycopg.OperationalError as error:
        raise TransientError("AOS4002", first_line(error)) from error


async def link_async(url: str, name: str) -> psycopg.AsyncConnection[Any]:
    """The same for the event loop; `name` shows in pg_stat_activity. psycopg's own error when nobody answers."""
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
