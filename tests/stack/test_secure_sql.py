"""SQL of a secure stack: TLS and a password for everybody, each role what its plan says, no tenant another's rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.cookbook import COOKBOOK
from aos.infra.database import Database, link
from aos.infra.local import LocalStack
from aos.infra.migrate import migrate
from aos.infra.retention import retain
from aos.infra.security.excess import excess
from aos.infra.security.passwords import as_role
from aos.infra.security.roles import OWNED, OWNER, READER, TENANT_VIEWS, WRITER, rows_schema, tenant_role
from aos.infra.security.tenants import grant, listed, revoke
from aos.infra.statistics import analyze_young
from aos.infra.store import digests
from aos.infra.surface import VIEWS
from tests.conftest import started
from tests.stack.sql_probes import ATTACKER, CANARY, NUMBER, OWN, VICTIM, Outcome, Probe, leaks, probes, run
from tests.stack.storing import bundles_of, write_all
from tests.unit.given_store import START, world

pytestmark = pytest.mark.stack
ROWS = 40  # of each tenant in each table, over several chunks
TENANTS = ("default", ATTACKER, VICTIM)
BEGAN = datetime.fromtimestamp(START / 1e6, UTC)
NO_BROKER = "none: these questions need no broker"


@pytest.fixture(scope="module")
def secure() -> Iterator[LocalStack]:
    """A secure database of its own with rows of two tenants in every table that has owners."""
    stack = LocalStack(bootstrap=NO_BROKER, secure=True)
    try:
        started(stack)
        migrate(stack.database_url, tenants=TENANTS)
        with link(stack.database_url) as admin:
            for tenant in (VICTIM, ATTACKER):  # what errs with a value would err with the victim's first
                _fill(admin, tenant)
        yield stack
    finally:
        stack.stop()


def _fill(admin: psycopg.Connection[Any], tenant: str) -> None:
    """Rows whose every value says whose it is."""
    for table in OWNED:
        names = admin.execute(f"SELECT * FROM aos_data.{table} LIMIT 0".encode()).description or ()
        kinds = dict(
            admin.execute(
                "SELECT attname::text, format_type(atttypid, -1) FROM pg_attribute "
                "WHERE attrelid = %s::regclass AND attnum > 0",
                (f"aos_data.{table}",),
            ).fetchall()
        )
        for row in range(ROWS):
            values = [_value(tenant, column.name, kinds[column.name], row) for column in names]
            what = sql.SQL("INSERT INTO aos_data.{} VALUES ({})")
            places = sql.SQL(", ").join([sql.Placeholder()] * len(values))
            admin.execute(what.format(sql.Identifier(table), places), values)


def _value(tenant: str, column: str, kind: str, row: int) -> Any:
    number = (NUMBER if tenant == VICTIM else NUMBER // 7) + row
    if column in ("tenant", "domain"):
        return tenant
    return {
        "text": f"{tenant}~canary~{row}", "text[]": [f"{tenant}~canary~{row}", f"{tenant}~canary"],
        "bytea": f"{tenant}~canary".encode(),
        "uuid": f"{number:032d}", "timestamp with time zone": BEGAN + timedelta(hours=row),
        "bigint": number, "integer": row, "smallint": row, "boolean": True, "real": row, "double precision": number,
        "real[]": [row], "boolean[]": [True],
    }[kind]  # fmt: skip


@pytest.fixture
def attacker(secure: LocalStack) -> Iterator[psycopg.Connection[Any]]:
    """A tenant at the SQL prompt."""
    made = grant(secure.database_url, ATTACKER)
    with psycopg.connect(made.url, password=made.password, autocommit=True) as connection:
        yield connection


def chunks_of(stack: LocalStack) -> list[str]:
    found = "SELECT format('%I.%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks"
    return [row[0] for row in Database(stack.database_url).query(found)[1]]


def everything(stack: LocalStack) -> Any:
    """What a probe must not have changed: rows, roles, rights, views, large objects."""
    found = [digests(stack.database_url)]
    for query in (
        "SELECT rolname, rolsuper, rolcanlogin, rolcreaterole, rolpassword IS NULL FROM pg_authid ORDER BY 1",
        "SELECT member::regrole::text, roleid::regrole::text FROM pg_auth_members ORDER BY 1, 2",
        "SELECT oid::regclass::text, relowner, relacl::text, reloptions::text FROM pg_class "
        "WHERE relkind IN ('r', 'v') AND oid >= 16384 ORDER BY 1",
        "SELECT count(*) FROM pg_largeobject_metadata",
        "SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' ORDER BY 1",
    ):
        found.append(Database(stack.database_url).query(query)[1])
    return found


# ── probes ────────────────────────────────────────────────────────────────────────────────────────


def _probe(secure: LocalStack, attacker: psycopg.Connection[Any], count: int, seed: int) -> Outcome:
    before = everything(secure)
    found = run(attacker, probes(count, seed, chunks_of(secure)))
    assert found.leaks == [], "\n".join((found.leaks or [])[:10])
    assert everything(secure) == before, "a probe changed something"
    assert found.tried == count
    return found


def test_a_thousand_forged_probes_show_a_tenant_nothing_of_another(
    secure: LocalStack, attacker: psycopg.Connection[Any], measured: Callable[[str], None]
) -> None:
    found = _probe(secure, attacker, 1_000, seed=4)
    measured(
        f"SQL: {found.tried} probes, {found.refused} statements refused, own rows in {found.own_seen}, 0 leaks"
    )
    assert found.own_seen > 50, "probes that see nothing prove nothing"


@pytest.mark.long
def test_ten_thousand_forged_probes_show_a_tenant_nothing_of_another(
    secure: LocalStack, attacker: psycopg.Connection[Any], measured: Callable[[str], None]
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    found = _probe(secure, attacker, 10_000, seed)
    measured(f"SQL: seed {seed}, {found.tried} probes, own rows in {found.own_seen}, 0 leaks")


ALL_VIEWS = [(rows_schema(ATTACKER), name) for name in OWNED] + [
    (tenant_role(ATTACKER), n) for n in TENANT_VIEWS
]
CHEAP = """
CREATE FUNCTION aos_tenant_acme.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
$$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$
"""


def test_the_same_probes_leak_once_the_barriers_are_down(
    secure: LocalStack, attacker: psycopg.Connection[Any]
) -> None:
    """The check can fail: what holds the leaky functions back are the barriers."""
    try:
        _barriers(secure, "false")
        found = run(
            attacker, (each for each in probes(5_000, 4, chunks_of(secure)) if each.kind == "barrier")
        )
        with link(secure.database_url) as admin:
            assert any("without a barrier" in each for each in excess(admin, ATTACKER))
    finally:
        _barriers(secure, "true")
    assert found.leaks
    assert all("_privilege" in each or "pg_has_role" in each for each in found.leaks)


def test_a_leaky_function_that_costs_nothing_meets_the_tenants_own_rows_only(
    secure: LocalStack, attacker: psycopg.Connection[Any]
) -> None:
    """A tenant cannot make one; were there one, only the barriers would be between it and everybody's rows."""
    tellers = [
        Probe("teller", (f"SELECT count(*) FROM {view} v WHERE aos_tenant_acme.tell(v.{column}::text)",))
        for view in TENANT_VIEWS
        for column in VIEWS[view].columns
    ]
    try:
        with link(secure.database_url) as admin:
            admin.execute(CHEAP)
            assert any("tell(text)" in each for each in excess(admin, ATTACKER))
        held = run(attacker, iter(tellers))
        _barriers(secure, "false")
        let = run(attacker, iter(tellers))
    finally:
        _barriers(secure, "true")
        with link(secure.database_url) as admin:
            admin.execute("DROP FUNCTION aos_tenant_acme.tell")
    assert held.leaks == []
    assert held.own_seen > len(TENANT_VIEWS)
    assert len(let.leaks or ()) > len(TENANT_VIEWS)


def _barriers(stack: LocalStack, on: str) -> None:
    with link(stack.database_url) as admin:
        for view in ALL_VIEWS:
            change = sql.SQL("ALTER VIEW {} SET (security_barrier = {})")
            admin.execute(change.format(sql.Identifier(*view), sql.SQL(on)))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("GRANT USAGE ON SCHEMA aos_data TO aos_tenant_acme; "
         "GRANT SELECT ON ALL TABLES IN SCHEMA aos_data TO aos_tenant_acme", "direct"),
        ("GRANT USAGE ON SCHEMA aos_tenant_globex TO PUBLIC; "
         "GRANT SELECT ON ALL TABLES IN SCHEMA aos_tenant_globex TO PUBLIC", "direct"),
        ("GRANT USAGE ON SCHEMA aos_rows_globex TO aos_tenant_acme; "
         "GRANT SELECT ON ALL TABLES IN SCHEMA aos_rows_globex TO aos_tenant_acme", "copy"),
        ("GRANT aos_tenant_globex TO aos_login_acme", "role"),
        ("GRANT pg_read_all_data TO aos_login_acme", "held"),
    ],
)  # fmt: skip
def test_a_right_too_many_is_seen_by_the_probes_and_refused_by_the_next_migration(
    secure: LocalStack, attacker: psycopg.Connection[Any], given: str, kind: str
) -> None:
    try:
        with link(secure.database_url) as admin:
            admin.execute(given.encode())
        tried = (each for each in probes(4_000, 4, chunks_of(secure)) if each.kind == kind)
        assert run(attacker, tried).leaks
        if "login" not in given:  # a login's own memberships are made right by `aos tenants grant` alone
            with pytest.raises(SettingsError, match="AOS5012"):
                migrate(secure.database_url, tenants=TENANTS)
    finally:
        with link(secure.database_url) as admin:
            admin.execute(given.replace("GRANT", "REVOKE").replace(" TO ", " FROM ").encode())
    migrate(secure.database_url, tenants=TENANTS)


# ── what each role may do ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("view", TENANT_VIEWS)
def test_each_view_of_a_tenant_has_its_own_rows_and_the_columns_of_the_operators_view(
    secure: LocalStack, attacker: psycopg.Connection[Any], view: str
) -> None:
    cursor = attacker.execute(f"SELECT * FROM {view}".encode())
    rows = cursor.fetchall()
    if view != "doubled":  # which has none, ever
        assert OWN in str(rows)
    assert not leaks(str(rows))
    assert [column.name for column in cursor.description or ()] == list(VIEWS[view].columns)
    operator = Database(as_role(secure.database_url, READER)).query(f"SELECT * FROM aos.{view}")[1]
    assert view == "doubled" or CANARY in str(operator), "the operator sees all"


def test_a_tenants_question_about_an_hour_reads_the_chunks_of_that_hour_alone(
    secure: LocalStack, attacker: psycopg.Connection[Any]
) -> None:
    """Comparisons of times are leakproof: they pass both barriers, and the planner can leave chunks out."""
    cut = BEGAN + timedelta(hours=ROWS - 1)
    ask = "EXPLAIN SELECT * FROM requests" + " WHERE requested_at >= '{}'"
    some = str(attacker.execute(ask.format(cut.isoformat()).encode()).fetchall())
    every = str(attacker.execute(b"EXPLAIN SELECT * FROM requests").fetchall())
    assert 0 < some.count("_hyper_") < every.count("_hyper_")


async def test_the_writers_role_does_all_that_the_store_does_and_no_more(secure: LocalStack) -> None:
    url = as_role(secure.database_url, WRITER)
    logs = world(300, seed=3, start=10_000)
    await write_all(url, bundles_of(logs, 50, 5))
    await write_all(url, bundles_of(logs, 50, 5))  # again, by another sink: the same statements, fenced anew
    analyze_young(url)
    kept = retain(url, Settings(keep_days=1), BEGAN + timedelta(days=1, hours=7))
    assert kept.dropped, "chunks are dropped by the owner's function"
    assert retain(url, Settings(keep_bytes=1_000_000), BEGAN).dropped == (), "none that may still be written"
    with link(url, autocommit=True) as writer:
        for statement in (
            "CREATE TABLE aos_data.more (a int)", "DROP TABLE aos_data.attempt", "TRUNCATE aos_data.attempt",
            "DELETE FROM aos_data.attempt", "UPDATE aos_data.result SET score = 1", "SELECT * FROM aos.tasks",
            "ALTER TABLE aos_data.attempt ADD COLUMN more int", "CREATE SCHEMA more", "SET ROLE aos_owner",
            "SELECT * FROM public.aos_migration", "SELECT aos_data.drop_before('place', now())",
            "SELECT aos_data.analyze_one('pg_catalog.pg_class')", "SELECT drop_chunks('aos_data.attempt', now())",
            "CREATE FUNCTION aos_data.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "SELECT * FROM aos_tenant_acme.tasks",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.Error) as error:
                writer.execute(statement.encode())
            assert error.type in (psycopg.errors.InsufficientPrivilege, psycopg.errors.RaiseException), (
                statement
            )


def test_the_readers_role_sees_every_view_and_no_table_and_writes_nothing(secure: LocalStack) -> None:
    url = as_role(secure.database_url, READER)
    for view in VIEWS:
        Database(url).query(f"SELECT * FROM aos.{view} LIMIT 1")
    for query in COOKBOOK.values():
        Database(url).query(query.sql)
    (chunk,) = chunks_of(secure)[:1]
    with link(url, autocommit=True) as reader:
        for statement in (
            "SELECT * FROM aos_data.attempt", "DELETE FROM aos.requests", "CREATE TEMP TABLE mine (a int)",
            "CREATE TABLE aos.mine (a int)", f"SELECT * FROM {chunk}", "SET ROLE aos_owner",
            "SELECT aos_data.drop_before('attempt', now())", "SELECT * FROM aos_rows_acme.attempt",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(statement.encode())


def test_nobody_but_the_superuser_owns_powers_and_the_owner_cannot_log_in(secure: LocalStack) -> None:
    rows = Database(secure.database_url).query(
        "SELECT rolname, rolcanlogin, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls "
        "FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' ORDER BY 1"
    )[1]
    powers = {name for name, _, power in rows if power}
    assert powers == {"postgres"}
    assert not {name: login for name, login, _ in rows}[OWNER]
    owners = (
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE nspname = 'aos' OR nspname LIKE 'aos\\_%' OR relname LIKE '\\_hyper\\_%'"
    )
    assert Database(secure.database_url).query(owners)[1] == [(OWNER,)]


# ── logins ────────────────────────────────────────────────────────────────────────────────────────


def test_a_login_is_made_changed_listed_and_taken_away(secure: LocalStack, tmp_path: Path) -> None:
    url = as_role(secure.database_url, READER)  # as a command gets it from the running stack
    first = grant(url, VICTIM)
    second = grant(url, VICTIM, tmp_path / "sub" / "globex.pgpass")
    assert second.password == ""
    assert (tmp_path / "sub" / "globex.pgpass").stat().st_mode & 0o777 == 0o600
    with psycopg.connect(second.url) as theirs:
        assert theirs.execute("SELECT count(*) > 0 FROM tasks").fetchone() == (True,)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(first.url, password=first.password)
        assert {"tenant": VICTIM, "role": "aos_tenant_globex", "login": "aos_login_globex"} in listed(url)
        revoke(url, VICTIM)
        with pytest.raises(psycopg.OperationalError):
            theirs.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(second.url)
    with pytest.raises(SettingsError, match="no login"):
        revoke(url, VICTIM)
    with pytest.raises(SettingsError, match="AOS5002"):
        grant(url, 'acme"; DROP')


def test_a_tenant_cannot_raise_what_its_sorts_may_write_to_the_disk(
    attacker: psycopg.Connection[Any],
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        attacker.execute("SET temp_file_limit = -1")
    assert attacker.execute("SHOW temp_file_limit").fetchone() == ("256MB",)


def test_a_temporary_table_of_the_writers_fools_no_function_of_the_owner(secure: LocalStack) -> None:
    with link(as_role(secure.database_url, WRITER), autocommit=True) as writer:
        writer.execute(
            "CREATE TEMP TABLE pg_class AS SELECT oid, relnamespace, 10::oid AS relowner FROM pg_catalog.pg_class"
        )
        writer.execute("CREATE TEMP TABLE kept (table_name text)")
        writer.execute("INSERT INTO kept VALUES ('place')")
        for call in ("analyze_one('pg_catalog.pg_class')", "drop_before('place', now())"):
            with pytest.raises(psycopg.errors.RaiseException):
                writer.execute(f"SELECT aos_data.{call}".encode())
        writer.execute("SELECT aos_data.analyze_one('aos_data.place')")


def test_who_is_no_administrator_makes_no_login(secure: LocalStack) -> None:
    made = grant(secure.database_url, ATTACKER)
    parts = urlsplit(made.url)
    theirs = parts._replace(netloc=f"{made.role}:{made.password}@{parts.netloc.rpartition('@')[2]}")
    with pytest.raises((SettingsError, psycopg.errors.InsufficientPrivilege)) as error:
        grant(theirs.geturl(), VICTIM)
    assert made.password not in str(error.value)
