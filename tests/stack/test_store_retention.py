"""Retention on a real database: whole chunks go, by age and by bytes, and no replay brings them back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.infra.database import Database, link
from aos.infra.migrate import migrate
from aos.infra.retention import IDS_DAYS, Retained, retain
from aos.infra.store import digests, forget
from aos.streams.shell.sinks import Portion
from tests.stack.storing import portions, write_all
from tests.unit.given_store import START, experience, requested

NOW = datetime.fromtimestamp(START / 1e6, UTC) + timedelta(days=10)
DAY_US = 86_400_000_000
GREAT = 10**12


@pytest.fixture
def url(database_url: str) -> str:
    """The module's database, migrated, with a request on each of ten days."""
    migrate(database_url)
    forget(database_url)
    return database_url


def days(count: int = 10, text: str = "") -> list[Portion]:
    """A request, an attempt and a result a day."""
    ledger = [requested(n, requested_at=START + n * DAY_US, traceparent=text) for n in range(count)]
    ends: list[dict[str, Any]] = []
    for n in range(count):
        times = {"requested_at": START + n * DAY_US, "finished_at": START + n * DAY_US + 1000}
        ends += [experience(n, **times, message=text), experience(n, "request", **times)]
    return portions([
        ("aos.ledger", 0, codec.from_dicts("entry", ledger)),
        ("aos.experiences", 0, codec.from_dicts("experience", ends)),
    ])  # fmt: skip


def counts(url: str) -> dict[str, int]:
    return {name: count for name, (count, _) in digests(url).items() if count}


def run(url: str, now: datetime = NOW, **settings: Any) -> Retained:
    return retain(url, Settings(**({"keep_days": 3650, "keep_bytes": GREAT} | settings)), now)


async def test_chunks_older_than_keep_days_are_dropped_and_younger_ones_stay(url: str) -> None:
    await write_all(url, [days()])
    assert run(url, keep_days=3).dropped
    sql = "SELECT count(*), min(requested_at) >= %s FROM aos.tasks"
    count, young = Database(url).query(sql, (NOW - timedelta(days=3, hours=6),))[1][0]
    assert (count, young) == (7 - 4, True)
    assert run(url, keep_days=3).dropped == ()


async def test_what_was_dropped_does_not_come_back_by_a_replay(url: str) -> None:
    await write_all(url, [days(5)])
    run(url, now=NOW - timedelta(days=5), keep_days=2)
    before = digests(url)
    with link(url) as connection:
        connection.execute("UPDATE aos_data.place SET next_offset = 0")
    await write_all(url, [days(5)])
    assert digests(url) == before
    skipped = dict(Database(url).query("SELECT table_name, skipped FROM aos_data.kept WHERE skipped > 0")[1])
    assert skipped == {"request": 3, "attempt": 3, "result": 3}


async def test_the_oldest_chunks_go_until_the_bytes_fit(url: str) -> None:
    await write_all(url, [days()])
    full = run(url).bytes_left
    assert len(run(url).dropped) == 0
    less = run(url, keep_bytes=max(1_000_000, full - 100_000))
    assert less.dropped
    assert less.bytes_left <= max(1_000_000, full - 100_000)
    rest = Database(url).query("SELECT min(requested_at), max(requested_at) FROM aos.tasks")[1][0]
    assert rest[0] > datetime.fromtimestamp(START / 1e6, UTC)
    assert rest[1] == datetime.fromtimestamp(START / 1e6, UTC) + timedelta(days=9)


async def test_a_chunk_that_may_still_be_written_is_never_dropped(url: str) -> None:
    rows = [requested(n, requested_at=START + n, traceparent="x" * 120) for n in range(5000)]
    await write_all(url, [portions([("aos.ledger", 0, codec.from_dicts("entry", rows))])])
    begun = datetime.fromtimestamp(START / 1e6, UTC)
    kept = run(url, now=begun + timedelta(minutes=1), keep_bytes=1_000_000)
    assert kept.bytes_left > 1_000_000, "too few bytes for a proof"
    assert kept.dropped == ()
    assert run(url, now=begun + timedelta(hours=7), keep_bytes=1_000_000).dropped


async def test_a_request_older_than_what_is_kept_counts_as_finished_although_it_has_no_row(url: str) -> None:
    await write_all(url, [days()])
    run(url, keep_days=3)
    late = {"requested_at": START + 1, "finished_at": START + 9 * DAY_US}
    end = codec.from_dicts("experience", [experience(99, "request", **late)])
    asked = codec.from_dicts("entry", [requested(99, requested_at=START + 1)])
    await write_all(url, [portions([("aos.ledger", 9, asked), ("aos.experiences", 9, end)])])
    assert Database(url).query("SELECT count(*) FROM aos_data.result_once WHERE finished_at > %s", (
        NOW - timedelta(days=1, minutes=1),))[1] == [(2,)]  # fmt: skip
    assert Database(url).query("SELECT (SELECT count(*) FROM aos.unfinished), count(*) FROM aos.tasks")[
        1
    ] == [(0, 3)]


async def test_ids_outlive_rows_by_their_own_days(url: str) -> None:
    await write_all(url, [days()])
    run(url, keep_days=1)
    assert counts(url)["result_once"] == IDS_DAYS
    run(url, now=NOW + timedelta(days=IDS_DAYS), keep_days=1)
    assert "result_once" not in counts(url)


async def test_chunks_to_come_are_shorter_when_one_takes_too_much(url: str) -> None:
    def length() -> Any:
        sql = "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_name = 'request'"
        return Database(url).query(sql)[1][0][0]

    before = length()
    run(url)
    assert length() == before
    rows = [requested(n, requested_at=START + 9 * DAY_US + n, traceparent="x" * 100) for n in range(2000)]
    await write_all(url, [portions([("aos.ledger", 0, codec.from_dicts("entry", rows))])])
    run(url, keep_bytes=1_000_000)
    assert length() == before / 2


def test_a_clock_without_zone_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="aware"):
        retain(url, Settings(), datetime(2026, 1, 1))
