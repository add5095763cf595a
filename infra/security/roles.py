"""Who may do what in SQL: the owner, the writer, the reader, and one role a tenant; as statements, nothing runs here.

aos_owner    owns schemas, tables, views and functions; cannot log in. Who migrates acts as it (SET ROLE).
aos_writer   the store: inserts, the updates and deletes of its statements, temporary tables, the owner's duties as
             functions (infra/sql/0005_duties.sql). No DDL, no TRUNCATE, not one view.
aos_reader   operators: every view of schema aos; no table.
aos_tenant_x a group: the views of the schema of the same name, time_bucket, which one of them calls, and nothing else.
             Logins are members.

A tenant's schema has the views of `aos` again, as security barriers over views that let only the tenant's rows
through. They are in a schema of their own (aos_rows_x) that the tenant cannot enter. Which tenant it is stands in their
text: no setting, no function and no name of a role says it, so nothing that a tenant may SET changes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from psycopg import sql

from aos.codecs.errors import SettingsError
from aos.infra.rollups import MEASURES
from aos.infra.surface import VIEWS
from aos.streams.store_tables import TABLES

OWNER, WRITER, READER = "aos_owner", "aos_writer", "aos_reader"
LOGINS_MAX = 10  # connections of one tenant at once
STATEMENT_LIMIT = "60s"  # a tenant may raise it: against mistakes, not against malice
SPILL_MAX = "256MB"  # of a session's sorts on disk; only a superuser may raise it
TENANT = re.compile(r"[A-Za-z0-9._-]{1,52}")  # a part of topics' names; so long that no role's name is cut

Statement = sql.SQL | sql.Composed

# A table's rows belong to the tenant they name, else to the one whose learning domain they name: his, or a part of it.
BY_TENANT = "tenant = {tenant}"
BY_DOMAIN = "(domain = {tenant} OR starts_with(domain, {tenant} || '/'))"
OPERATORS = ("setting",)  # names tenants, and speaks of all at once
OWNED: dict[str, str] = {
    name: BY_TENANT if "tenant" in columns else BY_DOMAIN
    for name, table in TABLES.items()
    if {"tenant", "domain"} & (columns := {column.name for column in table.columns}) and name not in OPERATORS
} | {"rollup_minute": BY_TENANT, "rollup_hour": BY_TENANT}
# What a tenant is shown: each view that reads nothing but such tables. The others speak of all tenants at once.
TENANT_VIEWS = tuple(
    name for name, view in VIEWS.items() if set(re.findall(r"aos_data\.(\w+)", view.sql)) <= set(OWNED)
)

# Everybody may call these after an installation, and each changes something, holds something up or tells of others.
# A lock of ours is a number that anybody could hold; large objects are tables that anybody could fill.
EFFECTS = (
    r"lo\_%", "loread", "lowrite", r"pg\_advisory\_%", r"pg\_try\_advisory\_%", "pg_notify", r"pg\_sleep%",
    r"pg\_logical\_emit\_message", r"pg\_export\_snapshot", r"pg\_cancel\_backend", r"pg\_terminate\_backend",
    r"pg\_stat\_get\_%", r"pg\_%\_size", r"pg\_ls\_%", r"pg\_replication\_%", r"txid\_current",
    r"pg\_current\_xact\_id",
)  # fmt: skip
EXTENSION = "timescaledb"
# The extension looks its own tables and functions up in these schemas as whoever has connected, once a connection.
# To enter one is all that a tenant may there: no table, no chunk and no function in it is his.
LOOKED_UP_IN = (
    "_timescaledb_catalog",
    "_timescaledb_config",
    "_timescaledb_functions",
    "_timescaledb_internal",
)
BUCKETS = "public.time_bucket(interval, timestamptz)"  # the one function outside pg_catalog that a tenant's view calls
NO_POWERS = sql.SQL("NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS")


def tenant_role(tenant: str) -> str:
    """The group of a tenant, and the name of its schema; SettingsError for what cannot be a tenant's name."""
    if not TENANT.fullmatch(tenant):
        raise SettingsError("AOS5002", f"a tenant {tenant!r}", "use 1 to 52 letters, digits, dots, _ and -")
    return f"aos_tenant_{tenant}"


def rows_schema(tenant: str) -> str:
    """Where the views stand that hold the tenant's rows of each table."""
    return f"aos_rows_{tenant}"


def login_role(tenant: str) -> str:
    """Who the tenant logs in as."""
    return f"aos_login_{tenant}"


def roles_sql() -> list[Statement]:
    """Makes the roles of AOS itself. Passwords come apart: a role that has none cannot log in."""
    found: list[Statement] = []
    for name, login in ((OWNER, "NOLOGIN"), (WRITER, "LOGIN"), (READER, "LOGIN")):
        found += [_made(name), sql.SQL("ALTER ROLE {} {} {}").format(_id(name), sql.SQL(login), NO_POWERS)]
    return found


def _made(name: str) -> Statement:
    """Makes a role that is not there; PostgreSQL has no IF NOT EXISTS for it."""
    text = "DO {}"
    body = sql.SQL(
        "BEGIN CREATE ROLE {}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END"
    ).format(_id(name))
    return sql.SQL(text).format(sql.Literal(body.as_string(None)))


def owned_sql() -> list[Statement]:
    """Gives the owner what AOS needs of the database and the extension, and whatever of AOS another role owns."""
    return [
        _for_database("GRANT CREATE, TEMPORARY ON DATABASE %I TO aos_owner"),
        *_extension("GRANT", "TO aos_owner"),
        sql.SQL(_TAKE_OVER),
    ]


_TAKE_OVER = """
DO $take$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT nspname FROM pg_namespace
        WHERE nspname IN ('aos', 'aos_data') AND pg_get_userbyid(nspowner) <> 'aos_owner'
    LOOP
        EXECUTE format('ALTER SCHEMA %I OWNER TO aos_owner', each.nspname);
    END LOOP;
    FOR each IN SELECT n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('aos', 'aos_data') AND c.relkind IN ('r', 'v')
            AND pg_get_userbyid(c.relowner) <> 'aos_owner'
    LOOP
        EXECUTE format('ALTER %s %I.%I OWNER TO aos_owner', CASE each.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
            each.nspname, each.relname);
    END LOOP;
    FOR each IN SELECT p.oid::regprocedure AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'aos_data' AND pg_get_userbyid(p.proowner) <> 'aos_owner'
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO aos_owner', each.name);
    END LOOP;
END $take$
"""


def nothing_to_all_sql() -> list[Statement]:
    """Takes from PUBLIC what every new database gives away, the extension's tables and functions among it."""
    patterns = sql.SQL(", ").join(map(sql.Literal, EFFECTS))
    return [
        _for_database("REVOKE ALL ON DATABASE %I FROM PUBLIC"),
        *_extension("REVOKE", "FROM PUBLIC"),
        sql.SQL("REVOKE ALL ON SCHEMA aos, aos_data FROM PUBLIC"),
        sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA aos, aos_data FROM PUBLIC"),
        sql.SQL("REVOKE ALL ON ALL ROUTINES IN SCHEMA aos, aos_data FROM PUBLIC"),
        sql.SQL(_NO_EFFECTS).format(sql.Literal(sql.SQL(_EFFECTS_BODY).format(patterns).as_string(None))),
    ]


_NO_EFFECTS = "DO {}"
_EFFECTS_BODY = """
DECLARE
    each record;
BEGIN
    FOR each IN SELECT p.oid::regprocedure AS name, p.prokind FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname LIKE ANY (ARRAY[{}])
            AND has_function_privilege('public', p.oid, 'EXECUTE')
    LOOP
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', each.name);
    END LOOP;
END
"""


def _extension(verb: str, whom: str) -> list[Statement]:
    """The same for every schema, table and function of TimescaleDB, and for schema public, where its functions are."""
    body = f"""
DECLARE
    each text;
BEGIN
    FOR each IN SELECT nspname FROM pg_namespace
        WHERE nspname = 'public' OR nspname LIKE '\\_timescaledb\\_%' OR nspname LIKE 'timescaledb\\_%'
    LOOP
        EXECUTE format('{verb} {"USAGE" if verb == "GRANT" else "ALL"} ON SCHEMA %I {whom}', each);
        EXECUTE format('{verb} EXECUTE ON ALL ROUTINES IN SCHEMA %I {whom}', each);
    END LOOP;
    FOR each IN SELECT d.objid::regclass::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
            AND e.extname = '{EXTENSION}' AND (SELECT relkind FROM pg_class WHERE oid = d.objid) IN ('r', 'v')
    LOOP
        EXECUTE format('{verb} SELECT ON %s {whom}', each);
    END LOOP;
END
"""
    return [sql.SQL("DO {}").format(sql.Literal(body))]


def _for_database(statement: str) -> Statement:
    body = f"BEGIN EXECUTE format('{statement}', current_database()); END"
    return sql.SQL("DO {}").format(sql.Literal(body))


def grants_sql() -> list[Statement]:
    """What writer and reader may; everything they had before is taken first, so that a plan can shrink."""
    found = [
        sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA aos, aos_data FROM aos_writer, aos_reader"),
        sql.SQL("REVOKE ALL ON SCHEMA aos, aos_data FROM aos_writer, aos_reader"),
        _for_database("GRANT CONNECT, TEMPORARY ON DATABASE %I TO aos_writer"),
        _for_database("GRANT CONNECT ON DATABASE %I TO aos_reader"),
        *_extension("GRANT", "TO aos_writer, aos_reader"),
        sql.SQL(_MEASURING),
        sql.SQL("GRANT USAGE ON SCHEMA aos_data TO aos_writer"),
        sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA aos_data TO aos_writer"),
        sql.SQL("GRANT USAGE ON SCHEMA aos TO aos_reader"),
        sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA aos TO aos_reader"),
    ]  # fmt: skip
    for table, rights in writer_rights().items():
        what = sql.SQL(", ").join(map(sql.SQL, rights))
        found.append(sql.SQL("GRANT {} ON aos_data.{} TO aos_writer").format(what, _id(table)))
    return found


_MEASURING = """
DO $measuring$
DECLARE
    each regprocedure;
BEGIN
    FOR each IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
        AND (p.proname LIKE 'pg\\_stat\\_get\\_%' OR p.proname LIKE 'pg\\_%\\_size')
        AND has_function_privilege('aos_owner', p.oid, 'EXECUTE') IS NOT TRUE
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO aos_owner, aos_writer, aos_reader', each);
    END LOOP;
END $measuring$
"""


def writer_rights() -> dict[str, tuple[str, ...]]:
    """Table by table what the store's statements need, and no more. SELECT: RETURNING, ON CONFLICT and LIKE read."""
    rights: dict[str, tuple[str, ...]] = {
        name: ("SELECT", "INSERT", "UPDATE", "DELETE") if table.replaced_by else ("SELECT", "INSERT")
        for name, table in TABLES.items()
    }
    rights |= dict.fromkeys(("request_once", "result_once"), ("SELECT", "INSERT", "DELETE"))
    rights["rollup_minute"] = ("SELECT", "INSERT", "UPDATE", "DELETE")
    rights["rollup_hour"] = ("SELECT", "INSERT", "UPDATE")
    rights["place"] = ("SELECT", "INSERT", "UPDATE")
    rights["kept"] = ("SELECT", "UPDATE")
    rights["unwritable"] = ("SELECT", "INSERT")
    return rights


def tenant_sql(tenant: str) -> list[Statement]:
    """Makes a tenant's role, its two schemas with their views, and its rights."""
    role, rows = tenant_role(tenant), rows_schema(tenant)
    own = sql.Literal(tenant).as_string(None)
    found = [
        _made(role),
        sql.SQL("ALTER ROLE {} NOLOGIN {}").format(_id(role), NO_POWERS),
        *(sql.SQL("CREATE SCHEMA {} AUTHORIZATION aos_owner").format(_id(schema)) for schema in (rows, role)),
        sql.SQL("SET LOCAL ROLE aos_owner"),
    ]  # fmt: skip
    for table, mine in OWNED.items():
        view = sql.SQL("CREATE VIEW {}.{} WITH (security_barrier) AS SELECT {} FROM aos_data.{} WHERE {}")
        columns = sql.SQL(", ").join(map(_id, _columns(table)))
        which = sql.SQL(mine.replace("{tenant}", own))
        found.append(view.format(_id(rows), _id(table), columns, _id(table), which))
    for name in TENANT_VIEWS:
        text = VIEWS[name].sql.strip().replace("aos_data.", f"{_id(rows).as_string(None)}.")
        view = sql.SQL("CREATE VIEW {}.{} WITH (security_barrier) AS {}")
        found.append(view.format(_id(role), _id(name), sql.SQL(text)))
        found.append(sql.SQL("COMMENT ON VIEW {}.{} IS {}").format(
            _id(role), _id(name), sql.Literal(VIEWS[name].doc)))  # fmt: skip
        found += [
            sql.SQL("COMMENT ON COLUMN {}.{}.{} IS {}").format(_id(role), _id(name), _id(column), sql.Literal(doc))
            for column, doc in VIEWS[name].columns.items()
        ]  # fmt: skip
    return [
        *found,
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(_id(role), _id(role)),
        sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(_id(role), _id(role)),
        sql.SQL("RESET ROLE"),
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
            sql.SQL(", ").join(map(_id, LOOKED_UP_IN)), _id(role)
        ),
        sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(BUCKETS), _id(role)),
        _for_database(f"GRANT CONNECT ON DATABASE %I TO {_id(role).as_string(None)}".replace("'", "''")),
    ]


def _columns(table: str) -> Sequence[str]:
    if table.startswith("rollup_"):
        return ("bucket", "tenant", "task_kind", *MEASURES)
    return [column.name for column in TABLES[table].columns]


def drop_tenant_sql(tenant: str) -> list[Statement]:
    """Drops a tenant's views, so that tables may change below them. Roles and logins stay."""
    schemas = (tenant_role(tenant), rows_schema(tenant))
    return [sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(_id(schema)) for schema in schemas]


def login_sql(tenant: str, verifier: str) -> list[Statement]:
    """Makes the tenant's login, or gives it another password (a verifier: the server never sees the password)."""
    login, role = _id(login_role(tenant)), _id(tenant_role(tenant))
    change = sql.SQL("ALTER ROLE {} LOGIN INHERIT {} CONNECTION LIMIT {} PASSWORD {}")
    return [
        _made(login_role(tenant)),
        change.format(login, NO_POWERS, sql.Literal(LOGINS_MAX), sql.Literal(verifier)),
        sql.SQL("GRANT {} TO {}").format(role, login),
        sql.SQL("ALTER ROLE {} SET search_path = {}").format(login, role),
        sql.SQL("ALTER ROLE {} SET statement_timeout = {}").format(login, sql.Literal(STATEMENT_LIMIT)),
        sql.SQL("ALTER ROLE {} SET temp_file_limit = {}").format(login, sql.Literal(SPILL_MAX)),
        sql.SQL("ALTER ROLE {} SET idle_in_transaction_session_timeout = {}").format(
            login, sql.Literal(STATEMENT_LIMIT)
        ),
        sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(login),
    ]


def no_login_sql(tenant: str) -> list[Statement]:
    """Takes the tenant's login away and ends its sessions."""
    login = login_role(tenant)
    return [
        sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(_id(login)),
        sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {}").format(sql.Literal(login)),
    ]  # fmt: skip


def _id(name: str) -> sql.Identifier:
    return sql.Identifier(name)
