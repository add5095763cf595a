"""The planner knows young tables: statistics come with the rows, not a minute later."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aos.codecs import rows as codec
from aos.infra.database import Database
from aos.infra.migrate import migrate
from aos.infra.statistics import analyze_young
from tests.stack.storing import portions, write_all
from tests.unit.given_store import START, requested

KNOWN = (
    "SELECT sum(greatest(reltuples, 0)) FROM pg_class JOIN timescaledb_information.chunks ON relname = chunk_name "
    "WHERE hypertable_name = 'request'"
)


async def write(url: str, first: int, count: int) -> None:
    rows = [requested(n, requested_at=START + n) for n in range(first, first + count)]
    await write_all(url, [portions([("aos.ledger", first, codec.from_dicts("entry", rows))])])


def analyzed(url: str, wanted: Any) -> list[str]:
    """Until `wanted` is known: sessions report what they changed a moment later."""
    found: list[str] = []
    until = time.monotonic() + 10
    while Database(url).query(KNOWN)[1][0][0] != wanted and time.monotonic() < until:
        found += analyze_young(url)
    return found


async def test_tables_are_analysed_when_they_double_and_not_in_between(database_url: str) -> None:
    migrate(database_url)
    await write(database_url, 0, 2000)
    assert analyzed(database_url, 2000)
    assert Database(database_url).query(KNOWN)[1][0][0] == 2000
    await write(database_url, 2000, 1500)
    await asyncio.sleep(1.5)  # until the session has reported
    assert analyze_young(database_url) == []
