"""The SQL surface: every view of schema `aos` with its meaning and that of each column.

A column that a record has takes its meaning from `codecs` (through streams/store_tables.py); what a view adds is
described beside its SQL. `surface_sql` makes all views anew; docs/sql.md is rendered from the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aos.infra.rollups import MEASURES
from aos.infra.surface_views import SQL, Meaning
from aos.streams.store_tables import TABLES


@dataclass(frozen=True, slots=True)
class SqlView:
    """One view: the sentence it answers, its columns in order with their meanings, its SELECT."""

    name: str
    doc: str
    sql: str
    columns: dict[str, str] = field(default_factory=dict)


def _meaning(doc: str, unit: str) -> str:
    return f"{doc} [{unit}]" if unit else doc


def _table_columns(table: str) -> dict[str, str]:
    return {column.name: _meaning(column.doc, column.unit) for column in TABLES[table].columns}


def _view(name: str, meaning: Meaning) -> SqlView:
    """Names of the columns come from the meaning; a meaning that is empty is looked up in its tables."""
    known: dict[str, str] = {}
    for table in reversed(meaning.tables):
        known |= _table_columns(table)
    columns = {column: doc or known[column] for column, doc in meaning.columns.items()}
    if not meaning.columns:
        columns = {column: doc for column, doc in known.items() if column not in meaning.without}
    listed = ", ".join(f'"{column}"' for column in columns)
    return SqlView(name, meaning.doc, meaning.sql.replace("{columns}", listed), columns)


VIEWS: dict[str, SqlView] = {name: _view(name, meaning) for name, meaning in SQL.items()}


def text(value: str) -> str:
    """A SQL string."""
    return "'" + value.replace("'", "''") + "'"


def surface_sql() -> str:
    """Drops and makes all views, with a comment on each and on every column. Tables get their comments too."""
    parts = [f"DROP VIEW IF EXISTS aos.{name};" for name in reversed(VIEWS)]
    for view in VIEWS.values():
        parts.append(f"CREATE VIEW aos.{view.name} AS\n{view.sql.strip()};")
        parts.append(f"COMMENT ON VIEW aos.{view.name} IS {text(view.doc)};")
        parts += [
            f'COMMENT ON COLUMN aos.{view.name}."{c}" IS {text(doc)};' for c, doc in view.columns.items()
        ]
    for table in TABLES.values():
        parts.append(f"COMMENT ON TABLE aos_data.{table.name} IS {text(table.doc)};")
    return "\n".join(parts) + "\n"


def unknown_measures() -> set[str]:
    """Rollup columns that the view does not explain (a test keeps this empty)."""
    return set(MEASURES) - set(VIEWS["rollup_minute"].columns)
