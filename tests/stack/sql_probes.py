"""What a tenant with SQL in hand may try to see, or change, of others: probes by a seed, and how a leak is told.

Every value of the victim's rows says whose it is (CANARY in texts, NUMBER in numbers), so that a leak is found wherever
it comes out: rows, COPY, errors in all their parts, notices, plans. A statement that writes is a leak too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from aos.infra.security.roles import OWNED, TENANT_VIEWS
from aos.infra.surface import VIEWS
from aos.streams.store_tables import TABLES

ATTACKER, VICTIM = "acme", "globex"
CANARY = "globex~canary"
NUMBER = 77_000_000_000_000  # the victim's numbers lie just above
OWN = "acme~canary"
LIMIT_MS = 5_000

# What errs with the value in its words, or does something with it, when it meets a row.
LEAKS = (
    "has_table_privilege({c}::text, 'SELECT')", "pg_has_role({c}::text, 'USAGE')",
    "has_schema_privilege({c}::text, 'USAGE')",
    "has_database_privilege({c}::text, 'CONNECT')", "has_function_privilege({c}::text, 'EXECUTE')",
    "CAST({c}::text AS integer) = 1", "{c}::text::date > 'epoch'", "{c}::text::json IS NULL", "{c}::text::uuid IS NULL",
    "{c}::text::inet IS NULL", "{c}::text::interval > '1 s'", "{c}::text::numeric = 0", "{c}::text::regclass IS NULL",
    "{c}::text::boolean", "{c}::text::point IS NULL", "{c}::text::timestamptz IS NULL", "{c}::text::bytea IS NULL",
    "decode({c}::text, 'hex') IS NULL", "{c}::text::xml IS NULL", "to_date({c}::text, 'YYYY') IS NULL",
    "query_to_xml('SELECT 1 AS \"' || {c}::text || '\" WHERE 1 = 1/0', false, false, '') IS NULL",
    "pg_input_is_valid({c}::text, 'integer') AND {c}::text::integer = 1", "regexp_count({c}::text, '(') > 0",
    "CASE WHEN {c}::text LIKE 'globex%' THEN {c}::text::integer ELSE 1 END = 1", "{c}::text::int4range IS NULL",
    "{c}::text::oid > 0", "{c}::text::float8 > 0", "{c}::text::money IS NULL", "{c}::text::bit(8) IS NULL",
    "{c}::text::jsonpath IS NULL", "{c}::text::tsquery IS NULL", "{c}::text::macaddr IS NULL", "{c}::text::int8 > 0",
    "json_object(ARRAY[{c}::text]) IS NULL", "to_regrole({c}::text) IS NULL", "{c}::text::pg_lsn IS NULL",
)  # fmt: skip
ROLES = (
    "aos_owner", "aos_writer", "aos_reader", "postgres", f"aos_tenant_{VICTIM}", f"aos_login_{VICTIM}",
    "pg_read_all_data", "pg_monitor", "pg_read_server_files", "pg_execute_server_program",
)  # fmt: skip
SETTINGS = (
    "SET row_security = off", "SET session_replication_role = replica", "SET enable_seqscan = off",
    "SET default_transaction_read_only = off", "SET search_path = aos_data, aos, public", "SET jit = on",
    f"SET search_path = aos_tenant_{VICTIM}, aos_rows_{VICTIM}", "SET debug_print_plan = on",
    "SET client_min_messages = debug5", "SET log_statement = 'all'", "SET plan_cache_mode = force_generic_plan",
    "SET aos.tenant = 'globex'", "SET timescaledb.enable_chunk_append = off", "SET join_collapse_limit = 1",
    "SET local_preload_libraries = 'dblink'", "SET from_collapse_limit = 1", "SET constraint_exclusion = on",
)  # fmt: skip
CATALOGUES = (
    "pg_stats", "pg_statistic", "pg_stats_ext", "pg_stats_ext_exprs", "pg_stat_activity", "pg_stat_user_tables",
    "pg_stat_statements", "pg_authid", "pg_shadow", "pg_largeobject", "pg_user_mappings", "pg_cursors", "pg_locks",
    "pg_prepared_statements", "pg_file_settings", "pg_hba_file_rules", "pg_stat_ssl", "pg_constraint", "pg_description",
    "information_schema.tables", "information_schema.columns", "information_schema.views", "pg_trigger", "pg_rewrite",
    "information_schema.role_table_grants", "information_schema.routines", "pg_stat_progress_copy", "pg_subscription",
    "timescaledb_information.chunks", "_timescaledb_catalog.chunk", "_timescaledb_catalog.hypertable",
    "_timescaledb_catalog.dimension_slice", "timescaledb_information.hypertables", "public.aos_migration",
)  # fmt: skip
FUNCTIONS = (
    "pg_read_file('postgresql.conf')", "pg_ls_dir('.')", "lo_import('/etc/hostname')", "lo_create(0)", "lo_get(1)",
    "lo_from_bytea(0, 'x')", "pg_advisory_lock(40017)", "pg_notify('a', 'b')", "pg_terminate_backend(1)",
    "pg_logical_emit_message(true, 'a', 'b')", "pg_reload_conf()", "pg_relation_size('aos_data.attempt')",
    "pg_stat_get_live_tuples('aos_data.attempt'::regclass)", "dblink('dbname=aos', 'SELECT 1')",
    "table_to_xml('aos_data.attempt', true, false, '')", "schema_to_xml('aos_data', true, false, '')",
    "database_to_xml(true, false, '')", "query_to_xml('TABLE aos_data.request', true, false, '')",
    "cursor_to_xml('c', 1, true, false, '')", "aos_data.drop_before('attempt', now())", "pg_sleep(9)",
    "aos_data.chunks_of('attempt', '1 hour')", "aos_data.analyze_one('aos_data.attempt')",
    "public.drop_chunks('aos_data.attempt', now())", "public.show_chunks('aos_data.attempt')",
    "public.hypertable_size('aos_data.attempt')", "public.approximate_row_count('aos_data.attempt')",
    "_timescaledb_functions.get_approx_row_count('aos_data.attempt')", "pg_stat_get_activity(NULL)",
    "pg_get_viewdef('aos_tenant_globex.tasks')", "set_config('role', 'aos_owner', false)", "pg_current_logfile()",
    "has_table_privilege('aos_data.attempt', 'SELECT')", "pg_export_snapshot()", "pg_get_wal_summarizer_state()",
    "ts_stat('SELECT to_tsvector(message) FROM aos_data.attempt')", "currtid2('aos_data.attempt', '(0,1)')",
    "brin_summarize_new_values('aos_data.attempt_by_id')", "pg_ls_waldir()", "pg_read_binary_file('PG_VERSION')",
)  # fmt: skip
POWERS = (
    "CREATE FUNCTION leak(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS "
    "$$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$",
    "CREATE FUNCTION pg_temp.leak(text) RETURNS bool LANGUAGE sql AS 'SELECT true'",
    "CREATE TEMP TABLE mine AS SELECT * FROM aos_data.attempt", "CREATE TEMP VIEW mine AS TABLE aos_data.request",
    "CREATE TABLE public.mine (a int)", "CREATE TABLE aos_tenant_acme.mine (a int)", "CREATE SCHEMA mine",
    "CREATE EXTENSION dblink", "CREATE EXTENSION postgres_fdw", "CREATE EXTENSION file_fdw", "CREATE ROLE mine",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw", "CREATE LANGUAGE plpython3u", "CREATE DATABASE mine",
    "GRANT aos_reader TO aos_login_acme", "GRANT pg_read_all_data TO aos_login_acme", "GRANT aos_owner TO PUBLIC",
    "ALTER ROLE aos_login_acme SUPERUSER", "ALTER ROLE aos_login_globex PASSWORD 'x'", "ALTER ROLE postgres NOLOGIN",
    "ALTER VIEW aos_tenant_acme.tasks SET (security_barrier = false)", "DROP VIEW aos_tenant_globex.tasks",
    "ALTER VIEW aos_tenant_acme.tasks OWNER TO aos_login_acme", "DROP SCHEMA aos_data CASCADE",
    "VACUUM aos_data.attempt",
    "CREATE OR REPLACE VIEW aos_tenant_acme.tasks AS TABLE aos.tasks", "TRUNCATE aos_data.attempt", "CHECKPOINT",
    "ALTER SYSTEM SET ssl = off", "ALTER DATABASE aos OWNER TO aos_login_acme", "LOCK TABLE aos_data.attempt",
    "REASSIGN OWNED BY aos_owner TO aos_login_acme", "ANALYZE aos_data.attempt",
    "LOCK TABLE aos_tenant_globex.tasks IN ACCESS SHARE MODE",
    "COPY aos_data.attempt FROM PROGRAM 'echo'", "CREATE PUBLICATION p FOR ALL TABLES", "CLUSTER aos_data.attempt",
    "CREATE SUBSCRIPTION s CONNECTION 'dbname=aos' PUBLICATION p", "IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z",
    "CREATE STATISTICS st ON tenant, status FROM aos_data.attempt", "COMMENT ON VIEW aos_tenant_globex.tasks IS 'x'",
    "SECURITY LABEL ON TABLE aos_data.attempt IS 'x'", "CREATE EVENT TRIGGER t ON sql_drop EXECUTE FUNCTION f()",
    "CREATE TRIGGER t AFTER INSERT ON aos_data.attempt EXECUTE FUNCTION f()", "LOAD 'dblink'",
    "CREATE RULE r AS ON SELECT TO aos_tenant_acme.tasks DO INSTEAD TABLE aos.tasks",
    "CREATE OPERATOR === (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text, RESTRICT = eqsel)",
    "CREATE AGGREGATE a (text) (SFUNC = textcat, STYPE = text)", "CREATE CAST (text AS integer) WITH INOUT",
    "CREATE POLICY p ON aos_data.attempt", "CREATE TYPE aos_tenant_acme.t AS (a int)", "REFRESH MATERIALIZED VIEW m",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probe:
    """Statements, one after the other over one connection, and of what kind they are."""

    kind: str
    statements: tuple[str, ...]


def probes(count: int, seed: int, chunks: Sequence[str]) -> Iterator[Probe]:
    """`count` probes, the kinds in turn; the same seed gives the same ones."""
    rng = random.Random(seed)
    kinds = itertools.cycle(KINDS.items())
    for (kind, make), _ in zip(kinds, range(count), strict=False):
        yield Probe(kind, tuple(make(rng, chunks)))


def _theirs(rng: random.Random, chunks: Sequence[str]) -> str:
    """A relation that is not the tenant's."""
    table, view = rng.choice([*TABLES, *OWNED, "place", "kept", "result_once"]), rng.choice(sorted(VIEWS))
    return rng.choice(
        [f"aos_data.{table}", rng.choice(chunks), f"aos.{view}", f"aos_tenant_{VICTIM}.{rng.choice(TENANT_VIEWS)}",
         f"aos_rows_{VICTIM}.{rng.choice(sorted(OWNED))}", f"aos_rows_{ATTACKER}.{rng.choice(sorted(OWNED))}"]
    )  # fmt: skip


def _own(rng: random.Random) -> tuple[str, list[str]]:
    """A view of the tenant's, and its columns."""
    view = rng.choice(TENANT_VIEWS)
    return f"aos_tenant_{ATTACKER}.{view}", list(VIEWS[view].columns)


def _leaky(rng: random.Random) -> str:
    """A query on the tenant's own view that would err with a row's values if it met a row before the barrier did."""
    view, columns = _own(rng)
    where = [rng.choice(LEAKS).format(c=f'v."{rng.choice(columns)}"') for _ in range(rng.randint(1, 3))]
    rng.shuffle(where)
    if "tenant" in columns and rng.random() < 0.3:
        where.insert(rng.randint(0, 1), f"v.tenant = '{VICTIM}'")
    join = f", {_own(rng)[0]} w" if rng.random() < 0.1 else ""
    condition = rng.choice([" AND ", " OR "]).join(f"({each})" for each in where)
    return rng.choice(
        [f"SELECT v.* FROM {view} v{join} WHERE {condition} LIMIT 50",
         f"SELECT count(*) FROM {view} v{join} WHERE {condition}",
         f"SELECT 1 FROM {view} v GROUP BY v.* HAVING bool_or({condition})",
         f"SELECT v.* FROM {view} v ORDER BY ({condition}) LIMIT 5",
         f"SELECT (SELECT count(*) FROM {view} v WHERE {condition}) AS n"]
    )  # fmt: skip


def _reading(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    theirs = _theirs(rng, chunks)
    return [rng.choice([
        f"SELECT * FROM {theirs} LIMIT 20", f"TABLE {theirs}", f"SELECT count(*) FROM ONLY {theirs}",
        f"SELECT t::text FROM {theirs} t WHERE t::text::integer = 1", f"SELECT (t).* FROM {theirs} t",
        f"SELECT to_jsonb(t) FROM {theirs} t", f"SELECT * FROM {theirs} TABLESAMPLE SYSTEM (100)",
        f"SELECT ctid, tableoid::regclass, t.* FROM {theirs} t", f"SELECT * FROM {theirs} FOR UPDATE",
        f"SELECT v.* FROM {_own(rng)[0]} v JOIN {theirs} t ON t::text <> ''", f"SELECT max(t::text) FROM {theirs} t",
        f"WITH x AS (SELECT * FROM {theirs}) SELECT * FROM x", f"SELECT EXISTS (TABLE {theirs})",
    ])]  # fmt: skip


def _copying(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    theirs, own = _theirs(rng, chunks), _own(rng)[0]
    return [rng.choice([
        f"COPY {theirs} TO STDOUT", f"COPY (SELECT * FROM {theirs}) TO STDOUT", f"COPY (TABLE {own}) TO STDOUT",
        f"COPY ({_leaky(rng)}) TO STDOUT", f"COPY {theirs} TO PROGRAM 'cat'", f"COPY {theirs} TO '/tmp/aos-probe'",
    ])]  # fmt: skip


def _acting_as(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    role, theirs = rng.choice(ROLES), _theirs(rng, chunks)
    become = rng.choice(
        [f"SET ROLE {role}", f"SET SESSION AUTHORIZATION {role}", f"SELECT set_config('role', '{role}', false)",
         f"SELECT set_config('session_authorization', '{role}', false)", "RESET ROLE", "SET ROLE NONE"]
    )  # fmt: skip
    return [become, f"SELECT * FROM {theirs} LIMIT 20", "RESET ALL"]


def _setting(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    relation = _theirs(rng, chunks).partition(".")[2]
    wanted = rng.choice([f"SELECT * FROM {relation} LIMIT 20", _leaky(rng)])
    return [*rng.sample(SETTINGS, rng.randint(1, 3)), wanted, "RESET ALL"]


def _filtering(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    return [_leaky(rng)]


def _explaining(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    hows = [
        "",
        "(ANALYZE)",
        "(ANALYZE, VERBOSE, BUFFERS)",
        "(FORMAT JSON, ANALYZE)",
        "(GENERIC_PLAN, VERBOSE)",
    ]
    how = rng.choice(hows)
    what = rng.choice([_leaky(rng), f"SELECT * FROM {_theirs(rng, chunks)}", f"TABLE {_own(rng)[0]}"])
    return [f"EXPLAIN {how} {what}"]


def _catalogues(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    return [f"SELECT t::text FROM {rng.choice(CATALOGUES)} t"]


def _holding(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    """Cursors and prepared statements, which outlive what was checked when they were made."""
    what = rng.choice([_leaky(rng), f"SELECT * FROM {_theirs(rng, chunks)}", f"TABLE {_own(rng)[0]}"])
    name = f"p{rng.randrange(10**9)}"
    return rng.choice(
        [[f"DECLARE {name} SCROLL CURSOR WITH HOLD FOR {what}", f"FETCH ALL FROM {name}", f"CLOSE {name}"],
         [f"PREPARE {name} AS {what}", f"EXECUTE {name}", f"EXECUTE {name}", f"DEALLOCATE {name}"],
         [f"DO $do$ DECLARE r record; BEGIN FOR r IN {what} LOOP RAISE NOTICE '%', r; END LOOP; END $do$"]]
    )  # fmt: skip


def _calling(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    view, _ = _own(rng)
    called = rng.choice(FUNCTIONS)
    return [
        rng.choice(
            [f"SELECT {called}", f"SELECT {called} FROM {view} LIMIT 1", f"SELECT * FROM {called} AS f"]
        )
    ]


def _changing(rng: random.Random, chunks: Sequence[str]) -> list[str]:
    relation = rng.choice([_theirs(rng, chunks), _own(rng)[0]])
    return [rng.choice([
        "SET default_transaction_read_only = off"]), rng.choice([
        f"DELETE FROM {relation}", f"INSERT INTO {relation} DEFAULT VALUES", f"TRUNCATE {relation}", *POWERS, *POWERS,
        f"INSERT INTO {relation} SELECT * FROM {relation} RETURNING *", f"ALTER TABLE {relation} RENAME TO gone",
        f"MERGE INTO {relation} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
    ]), "RESET ALL"]  # fmt: skip


KINDS = {
    "direct": _reading, "copy": _copying, "role": _acting_as, "settings": _setting, "barrier": _filtering,
    "explain": _explaining, "catalogue": _catalogues, "held": _holding, "function": _calling, "change": _changing,
}  # fmt: skip
# What may succeed although it is no SELECT: it changes the session, or nothing.
HARMLESS = (
    "SELECT", "SET", "RESET", "EXPLAIN", "COPY", "FETCH", "DECLARE CURSOR", "CLOSE CURSOR", "PREPARE", "EXECUTE",
    "DEALLOCATE", "DO", "SHOW",
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What came of many probes."""

    tried: int = 0
    refused: int = 0
    own_seen: int = 0  # that showed rows of the tenant's own: the probes do see something
    leaks: list[str] | None = None


def run(link: psycopg.Connection[Any], wanted: Iterator[Probe]) -> Outcome:
    """Try all over one connection (autocommit); a leak is told with its statements and where it came out."""
    found = Outcome(leaks=[])
    assert found.leaks is not None
    notices: list[str] = []
    link.add_notice_handler(lambda said: notices.append(f"{said.message_primary} {said.message_detail}"))
    link.execute(f"SET statement_timeout = {LIMIT_MS}")
    for probe in wanted:
        found.tried += 1
        notices.clear()
        heard: list[str] = []
        for statement in probe.statements:
            heard.append(_said(link, statement, found))
            if statement == "RESET ALL":
                link.execute(f"SET statement_timeout = {LIMIT_MS}")
        text = "\n".join([*heard, *notices])
        found.own_seen += OWN in text
        if leaks(text):
            found.leaks.append(f"{probe.kind}: {'; '.join(probe.statements)} -> {text[:300]}")
    return found


def leaks(text: str) -> bool:
    """Whether a value of the victim's rows is in it, or that a statement wrote."""
    return CANARY in text or str(NUMBER)[:10] in text or "WROTE" in text


def _said(link: psycopg.Connection[Any], statement: str, found: Outcome) -> str:
    """Everything that a statement lets out: rows, or the parts of its error but the statement itself."""
    try:
        cursor = link.cursor()
        if statement.startswith("COPY") and "STDOUT" in statement:
            with cursor.copy(statement.encode()) as copy:
                return b"".join(bytes(part) for part in copy).decode(errors="replace")
        cursor.execute(statement.encode())
        done = cursor.statusmessage or ""
        wrote = "" if done.startswith(HARMLESS) else f"WROTE {done} "
        return wrote + (str(cursor.fetchall()) if cursor.description else "")
    except psycopg.Error as error:
        found.refused += 1
        if link.closed:
            raise
        diag = error.diag
        parts = (diag.message_primary, diag.message_detail, diag.message_hint, diag.context, diag.internal_query,
                 diag.column_name, diag.table_name, diag.constraint_name, str(error))  # fmt: skip
        return " ".join(part for part in parts if part)
