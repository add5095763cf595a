"""What a tenant's role may reach that its plan does not say, asked of the database itself.

The plan is what `roles` grants; this looks at what PostgreSQL answers, PUBLIC and every membership included. It is
the last thing of a migration: one right too many, and the whole step is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, LiteralString

import psycopg

from aos.codecs.errors import SettingsError
from aos.infra.security.roles import BUCKETS, EFFECTS, LOOKED_UP_IN, rows_schema, tenant_role

SHOWN_MAX = 5
# Not counted: reading the catalogues, which show names of tables and roles to everybody, and no row of a table.
_RELATIONS: LiteralString = """
SELECT format('%%s on %%I.%%I', r.kind, n.nspname, c.relname) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS r (kind)
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND n.nspname NOT LIKE 'pg\\_temp\\_%%' AND n.nspname NOT LIKE 'pg\\_toast%%'
    AND NOT (n.nspname IN ('pg_catalog', 'information_schema') AND r.kind = 'SELECT')
    AND NOT (n.nspname = %(role)s AND r.kind = 'SELECT' AND c.relkind = 'v')
    AND (has_table_privilege(%(role)s, c.oid, r.kind)
        OR r.kind IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(%(role)s, c.oid, r.kind))
    AND NOT (n.nspname = 'pg_catalog' AND c.relname = 'pg_settings' AND r.kind = 'UPDATE')
ORDER BY 1
"""
_SCHEMAS: LiteralString = """
SELECT format('%%s on schema %%I', r.kind, n.nspname) FROM pg_namespace n
CROSS JOIN unnest(ARRAY['USAGE', 'CREATE']) AS r (kind)
WHERE has_schema_privilege(%(role)s, n.oid, r.kind)
    AND NOT (r.kind = 'USAGE' AND n.nspname = ANY (%(entered)s))
UNION ALL
SELECT format('%%s on database %%I', r.kind, d.datname) FROM pg_database d
CROSS JOIN unnest(ARRAY['CREATE', 'TEMPORARY']) AS r (kind)
WHERE d.datname = current_database() AND has_database_privilege(%(role)s, d.oid, r.kind)
"""
_FUNCTIONS: LiteralString = """
SELECT format('EXECUTE on %%s', p.oid::regprocedure) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE has_function_privilege(%(role)s, p.oid, 'EXECUTE')
    AND (n.nspname NOT IN ('pg_catalog', 'information_schema')
            AND p.oid <> %(buckets)s::regprocedure
        OR n.nspname = 'pg_catalog' AND p.proname LIKE ANY (%(effects)s))
ORDER BY 1
"""
_POWERS: LiteralString = """
SELECT 'an attribute of a superuser or maker of roles' FROM pg_roles WHERE rolname = %(role)s
    AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
UNION ALL
SELECT format('membership in %%I', g.rolname) FROM pg_auth_members m
JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = %(role)s
UNION ALL
SELECT format('a view without a barrier: %%I.%%I', n.nspname, c.relname) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN (%(role)s, %(rows)s) AND NOT coalesce(c.reloptions @> ARRAY['security_barrier=true'], false)
"""


def excess(connection: psycopg.Connection[Any], tenant: str) -> list[str]:
    """Each right beyond the plan, in words; empty as it must be."""
    role = tenant_role(tenant)
    given: dict[str, Any] = {"role": role, "rows": rows_schema(tenant), "effects": list(EFFECTS)}
    given |= {"entered": ["pg_catalog", "information_schema", role, *LOOKED_UP_IN], "buckets": BUCKETS}
    found: list[str] = []
    for query in (_RELATIONS, _SCHEMAS, _FUNCTIONS, _POWERS):
        found += [row[0] for row in connection.execute(query, given).fetchall()]
    return found


def check_nothing_more(connection: psycopg.Connection[Any], tenants: Iterable[str]) -> None:
    """SettingsError AOS5012 when a tenant's role has more than its plan: nothing of the migration stays."""
    for tenant in tenants:
        found = excess(connection, tenant)
        if found:
            more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
            raise SettingsError("AOS5012", f"{tenant_role(tenant)} has {', '.join(found[:SHOWN_MAX])}{more}")
