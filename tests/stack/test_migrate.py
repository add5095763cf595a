"""Migrations on a real database: all or nothing, once, and the schema is what the code says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from aos.codecs.errors import SettingsError
from aos.infra.copying import sql_type
from aos.infra.database import Database, link
from aos.infra.migrate import VIEWS as VIEWS_NAME
from aos.infra.migrate import Migration, migrate, migrations
from aos.infra.rollups import MEASURES
from aos.infra.surface import VIEWS
from aos.streams.store_tables import TABLES


@pytest.fixture
def fresh(database_url: str) -> Iterator[str]:
    """A database nobody has migrated."""
    name = "migrations"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        admin.execute(f"CREATE DATABASE {name}".encode())
    yield urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_all_migrations_run_once(fresh: str) -> None:
    assert migrate(fresh) == [*(migration.name for migration in migrations()), VIEWS_NAME]
    assert migrate(fresh) == []


def test_migrations_are_numbered_without_gaps() -> None:
    assert [int(migration.name[:4]) for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_two_runners_at_once_run_each_migration_once(fresh: str) -> None:
    ran: list[list[str]] = []
    runners = [threading.Thread(target=lambda: ran.append(migrate(fresh))) for _ in range(3)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert sorted(len(names) for names in ran) == [0, 0, len(migrations()) + 1]


def test_a_changed_file_is_refused(fresh: str) -> None:
    migrate(fresh)
    changed = [replace(migration, text=migration.text + "-- more") for migration in migrations()]
    with pytest.raises(SettingsError, match="AOS5005") as caught:
        migrate(fresh, changed)
    assert "has changed" in caught.value.detail


def test_a_database_of_a_newer_release_is_refused(fresh: str) -> None:
    migrate(fresh, [*migrations(), Migration("0999_future.sql", "SELECT 1")])
    with pytest.raises(SettingsError, match="AOS5005"):
        migrate(fresh)


def test_a_failing_file_leaves_nothing_of_the_whole_run(fresh: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        migrate(fresh, [*migrations(), Migration("0999_wrong.sql", "SELECT * FROM nowhere")])
    with link(fresh) as connection:
        rows = connection.execute("SELECT FROM pg_namespace WHERE nspname IN ('aos', 'aos_data')").fetchall()
    assert rows == []
    assert migrate(fresh)[-1] == VIEWS_NAME


def test_views_are_made_anew_when_their_text_has_changed(fresh: str) -> None:
    migrate(fresh)
    with link(fresh) as connection:
        connection.execute("UPDATE public.aos_migration SET sha256 = 'old' WHERE name = %s", (VIEWS_NAME,))
        connection.execute("DROP VIEW aos.doubled")
    assert migrate(fresh) == [VIEWS_NAME]
    assert Database(fresh).query("SELECT count(*) FROM aos.doubled")[1] == [(0,)]


def test_tables_have_exactly_the_declared_columns_and_types(fresh: str) -> None:
    migrate(fresh)
    found: dict[str, list[tuple[str, str]]] = {}
    sql = (
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a "
        "JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'aos_data' AND c.relkind = 'r' AND a.attnum > 0 ORDER BY c.relname, a.attnum"
    )
    for table, column, type in Database(fresh).query(sql)[1]:
        found.setdefault(table, []).append((column, type.replace("timestamp with time zone", "timestamptz")))
    for table in TABLES.values():
        assert found[table.name] == [(c.name, sql_type(c.type)) for c in table.columns], table.name
    for rollup in ("rollup_minute", "rollup_hour"):
        assert [name for name, _ in found[rollup]] == ["bucket", "tenant", "task_kind", *MEASURES]


def test_tables_have_the_declared_keys_and_times(fresh: str) -> None:
    migrate(fresh)
    sql = (
        "SELECT conrelid::regclass::text, array_agg(attname::text ORDER BY place) FROM pg_constraint "
        "CROSS JOIN LATERAL unnest(conkey) WITH ORDINALITY AS k (number, place) "
        "JOIN pg_attribute ON attrelid = conrelid AND attnum = k.number WHERE contype = 'p' GROUP BY conrelid"
    )
    keys = dict(Database(fresh).query(sql)[1])
    times = dict(Database(fresh).query(
        "SELECT hypertable_name, column_name FROM timescaledb_information.dimensions"
    )[1])  # fmt: skip
    for table in TABLES.values():
        assert tuple(keys[f"aos_data.{table.name}"]) == table.key
        assert times.get(table.name) == table.time
    kept = {row[0] for row in Database(fresh).query("SELECT table_name FROM aos_data.kept")[1]}
    assert kept == {table.name for table in TABLES.values() if table.time}


def test_every_column_of_every_view_has_the_declared_comment(fresh: str) -> None:
    migrate(fresh)
    sql = (
        "SELECT c.relname, obj_description(c.oid), a.attname, col_description(c.oid, a.attnum) FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE n.nspname = 'aos' AND a.attnum > 0 ORDER BY c.relname, a.attnum"
    )
    found: dict[str, dict[str, str]] = {}
    for view, doc, column, meaning in Database(fresh).query(sql)[1]:
        assert doc, f"aos.{view} has no comment"
        assert meaning, f"aos.{view}.{column} has no comment"
        found.setdefault(view, {})[column] = meaning
    assert found == {name: view.columns for name, view in VIEWS.items()}


@pytest.mark.parametrize(
    ("table", "leading"),
    [
        ("request", ["request_id"]), ("attempt", ["request_id"]), ("decision", ["request_id"]),
        ("attempt", ["agent", "requested_at"]), ("request", ["tenant", "requested_at"]),
    ],
)  # fmt: skip
def test_there_are_indexes_by_request_by_agent_and_by_tenant(
    fresh: str, table: str, leading: list[str]
) -> None:
    migrate(fresh)
    sql = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'aos_data' AND tablename = %s"
    found = [row[0].split("(")[1].rstrip(")").split(", ") for row in Database(fresh).query(sql, (table,))[1]]
    assert leading in found
