"""The sink on a real database: rows, rollups and offsets in one transaction, whatever is killed or repeated."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from aos.codecs import rows as codec
from aos.infra.database import Database, link
from aos.infra.migrate import migrate
from aos.infra.store import Fenced, TimescaleSink, digests, forget
from aos.streams.shell.sinks import NOTHING, Portion, SinkAway
from tests.stack.storing import (
    PARTITIONS,
    bundles_of,
    places,
    portions,
    sink_on,
    write_all,
    write_as_the_runner_does,
)
from tests.unit.given_store import (
    START,
    common,
    decision,
    experience,
    ledger_step,
    messages,
    request_id,
    requested,
    world,
)


@pytest.fixture
def url(database_url: str) -> str:
    """The module's database, migrated and empty."""
    migrate(database_url)
    forget(database_url)
    return database_url


def one(url: str, sql: str) -> Any:
    return Database(url).query(sql)[1][0][0]


def execute(url: str, sql: str) -> None:
    with link(url) as connection:
        connection.execute(sql.encode())


def portion(topic: str, offset: int, record: str, *rows: dict[str, Any]) -> Portion:
    return portions([(topic, offset, codec.from_dicts(record, list(rows)))])[0]


async def test_offsets_are_stored_with_the_rows_and_given_back_on_open(url: str) -> None:
    logs = world(20)
    await write_all(url, bundles_of(logs, 7, 2))
    known = await places(url)
    last = {topic: offset for topic, offset, _ in messages(logs, 7)}
    assert {topic: known[topic, 0] for topic in last} == {topic: offset + 1 for topic, offset in last.items()}
    assert known["aos.alerts", 0] == 0
    assert one(url, "SELECT count(*) FROM aos.tasks") == 20


async def test_a_message_that_nobody_could_read_moves_its_place_on_and_writes_no_row(url: str) -> None:
    unreadable = Portion("aos.ledger", 0, 6, NOTHING, 0)
    before = digests(url)
    await write_all(url, [[unreadable]])
    assert (await places(url))["aos.ledger", 0] == 7
    await write_all(url, [[unreadable._replace(offset=7), portion("aos.ledger", 8, "entry", requested(1))]])
    assert (await places(url))["aos.ledger", 0] == 9
    assert digests(url) != before
    assert one(url, "SELECT count(*) FROM aos.requests") == 1


async def test_messages_below_the_stored_offset_are_dropped(url: str) -> None:
    bundles = bundles_of(world(20), 7, 2)
    await write_all(url, bundles)
    before = digests(url)
    await write_all(url, bundles)
    assert digests(url) == before


async def test_a_message_below_the_stored_offset_is_not_even_looked_at(url: str) -> None:
    await write_all(url, [[portion("aos.ledger", 7, "entry", requested(1))]])
    below = portion("aos.ledger", 6, "entry", requested(2))
    await write_all(url, [[below, portion("aos.ledger", 9, "entry", requested(3))]])
    rows = Database(url).query("SELECT request_id FROM aos.requests ORDER BY requested_at")[1]
    assert [row[0].bytes for row in rows] == [request_id(1), request_id(3)]


async def test_duplicates_under_new_offsets_change_neither_rows_nor_rollups(url: str) -> None:
    bundles = bundles_of(world(20), 7, 2)
    await write_all(url, bundles)
    before = digests(url)
    await write_all(url, [[p._replace(offset=p.offset + 1000) for p in bundle] for bundle in bundles])
    assert digests(url) == before


async def test_a_replay_of_all_topics_into_an_empty_schema_gives_equal_tables(url: str) -> None:
    logs = world(60)
    await write_all(url, bundles_of(logs, 7, 3))
    live = digests(url)
    assert live["attempt"][0] > 60
    forget(url)
    assert digests(url)["result"][0] == 0
    await write_all(url, bundles_of(logs, 1000, 1))
    assert digests(url) == live


async def test_a_sink_that_was_taken_over_writes_nothing(url: str) -> None:
    old, new = sink_on(url), sink_on(url)
    await old.open(PARTITIONS)
    await new.open(PARTITIONS)
    with pytest.raises(Fenced):
        await old.write([portion("aos.ledger", 0, "entry", requested(1))])
    assert one(url, "SELECT count(*) FROM aos.requests") == 0
    await new.write([portion("aos.ledger", 0, "entry", requested(1))])
    assert one(url, "SELECT count(*) FROM aos.requests") == 1
    await asyncio.gather(old.close(), new.close())


async def test_a_topic_made_anew_is_read_from_its_beginning(url: str) -> None:
    await write_all(url, [[portion("aos.ledger", 41, "entry", requested(1))]])
    sink = sink_on(url, born="2")
    assert (await sink.open(PARTITIONS))["aos.ledger", 0] == 0
    await sink.write([portion("aos.ledger", 0, "entry", requested(2))])
    await sink.close()
    assert one(url, "SELECT count(*) FROM aos.requests") == 2


async def test_killed_connections_lose_nothing_and_double_nothing(url: str) -> None:
    """Backends are killed at random moments, in COMMIT too; the log is read on from the database's offsets."""
    logs = world(90)
    await write_all(url, bundles_of(logs, 1000, 1))
    expected = digests(url)
    forget(url)
    rng = random.Random(1)

    async def kill() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as killer:
            while True:  # until all is written, however fast that is here
                await asyncio.sleep(rng.uniform(0.02, 0.2))
                await killer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'aos.store' AND datname = current_database()"
                )

    killing = asyncio.create_task(kill())
    away = await write_as_the_runner_does(url, portions(messages(logs, 5)), each=2)
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    assert away >= 3, "too few kills for a proof"
    assert digests(url) == expected


async def test_a_database_that_is_away_is_said_so(url: str) -> None:
    nowhere = sink_on("postgresql://postgres@127.0.0.1:1/nowhere")
    with pytest.raises(SinkAway):
        await nowhere.open(PARTITIONS)
    with pytest.raises(SinkAway):
        await nowhere.write([portion("aos.ledger", 0, "entry", requested(1))])


async def test_a_cancelled_write_leaves_nothing_behind(url: str) -> None:
    sink = sink_on(url)
    await sink.open(PARTITIONS)
    with link(url) as holder:
        holder.execute("LOCK TABLE aos_data.request IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sink.write([portion("aos.ledger", 0, "entry", requested(1))])
    with pytest.raises(SinkAway):
        await sink.write([portion("aos.ledger", 0, "entry", requested(1))])
    assert (await sink.open(PARTITIONS))["aos.ledger", 0] == 0
    assert one(url, "SELECT count(*) FROM aos.requests") == 0
    await sink.close()


async def test_lost_conflicts_are_tried_again_within_a_bound(url: str) -> None:
    execute(url, "CREATE SEQUENCE loss")
    execute(
        url,
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('loss') <= 3 THEN RAISE EXCEPTION SQLSTATE '40P01'; END IF; RETURN NEW; END $$",
    )
    execute(
        url,
        "CREATE TRIGGER lose BEFORE UPDATE ON aos_data.place FOR EACH ROW "
        "WHEN (NEW.generation = OLD.generation) EXECUTE FUNCTION lose()",
    )
    try:
        await write_all(url, [[portion("aos.ledger", 0, "entry", requested(1))]])
        assert one(url, "SELECT last_value FROM loss") == 4
        assert one(url, "SELECT count(*) FROM aos.requests") == 1
        execute(url, "ALTER SEQUENCE loss RESTART WITH -1000 MINVALUE -1000")
        with pytest.raises(SinkAway):
            await write_all(url, [[portion("aos.ledger", 1, "entry", requested(2))]])
    finally:
        execute(url, "DROP TRIGGER lose ON aos_data.place; DROP FUNCTION lose; DROP SEQUENCE loss")


async def test_a_message_that_sql_refuses_is_set_aside_and_the_others_go_on(url: str) -> None:
    execute(url, "ALTER TABLE aos_data.attempt ADD CONSTRAINT no_eve CHECK (agent <> 'eve')")
    try:
        bad = portion("aos.experiences", 1, "experience", experience(2, agent="eve"), experience(3))
        good = portion("aos.experiences", 2, "experience", experience(4))
        await write_all(url, [[portion("aos.ledger", 0, "entry", requested(1)), bad, good]])
    finally:
        execute(url, "ALTER TABLE aos_data.attempt DROP CONSTRAINT no_eve")
    assert Database(url).query('SELECT topic, "offset", rows_count FROM aos.unwritable')[1] == [
        ("aos.experiences", 1, 2)
    ]
    assert one(url, "SELECT count(*) FROM aos.attempts") == 1
    assert (await places(url))["aos.experiences", 0] == 3


async def test_hostile_values_are_written_in_a_form_that_sql_holds(url: str) -> None:
    hostile = {
        "message": "nul\x00 'quote' \"double\" \\back, {brace}\r\nline", "agent": "ä" * 4000, "task_kind": "",
        "team": ["NULL", "", "a,b", 'q"q', "b\\s", "{x}", "n\x00", "  "], "code": "\\N",
    }  # fmt: skip
    rows = [
        experience(1, **hostile),
        experience(2, requested_at=2**62, finished_at=-(2**62), assigned_at=None),
        experience(3, agent="\u200b💥", team=[]),
    ]
    await write_all(url, [[portion("aos.experiences", 0, "experience", *rows)]])
    found = {row[0]: row[1:] for row in Database(url).query(
        "SELECT request_id, message, length(agent), task_kind, team, code, requested_at FROM aos.attempts"
    )[1]}  # fmt: skip
    by_serial = [next(value for id, value in found.items() if id.bytes == request_id(n)) for n in (1, 2, 3)]
    assert by_serial[0][0] == hostile["message"].replace("\x00", "\ufffd")
    assert by_serial[0][1:5] == (120, "", [name.replace("\x00", "\ufffd") for name in hostile["team"]], "\\N")
    assert by_serial[1][5] == datetime(2100, 1, 1, tzinfo=UTC)
    assert by_serial[2][3] == []


async def test_rollups_count_each_new_row_once(url: str) -> None:
    logs = world(80)
    await write_all(url, bundles_of(logs, 9, 4))
    ends = [row for row in logs["aos.experiences"] if row["kind"] == "request"]
    tries = [row for row in logs["aos.experiences"] if row["kind"] == "attempt"]
    names = (
        "requests",
        "results",
        "ok",
        "failed",
        "attempts",
        "attempts_failed",
        "retries",
        "cost_usd_micros",
    )
    names += ("waited_us", "latency_us")
    for unit in ("minute", "hour"):
        sums = ", ".join(f"sum({name})::bigint" for name in names)
        assert Database(url).query(f"SELECT {sums} FROM aos.rollup_{unit}")[1] == [(
            80, 80, sum(r["status"] == "ok" for r in ends), sum(r["status"] == "failed" for r in ends), len(tries),
            sum(r["status"] != "ok" for r in tries), sum(r["attempt"] > 1 for r in tries),
            sum(r["cost_usd_micros"] for r in ends), sum(r["waited_us"] for r in tries),
            sum(r["latency_us"] for r in ends),
        )]  # fmt: skip
    minutes = Counter(row["finished_at"] // 60_000_000 for row in ends)
    found = Database(url).query(
        "SELECT bucket, sum(results)::int FROM aos.rollup_minute WHERE results > 0 GROUP BY 1"
    )[1]
    assert {int(at.timestamp()) // 60: count for at, count in found} == dict(minutes)


async def test_a_repeated_request_has_one_row_and_one_end_whatever_time_it_brings(url: str) -> None:
    again = requested(1, requested_at=START + 5_000_000)
    end = experience(1, "request", requested_at=START + 5_000_000)
    await write_all(url, [
        [portion("aos.ledger", 0, "entry", requested(1))],
        [portion("aos.experiences", 0, "experience", experience(1, "request"))],
        [portion("aos.ledger", 1, "entry", again), portion("aos.experiences", 1, "experience", end)],
    ])  # fmt: skip
    assert one(url, "SELECT count(*) FROM aos.tasks") == 1
    assert Database(url).query("SELECT requests, results FROM aos.rollup_hour")[1] == [(1, 1)]


async def test_unfinished_and_doubled_show_what_should_not_be(url: str) -> None:
    await write_all(url, [[portion("aos.ledger", 0, "entry", requested(1), requested(2))],
                          [portion("aos.experiences", 0, "experience", experience(1, "request"))]])  # fmt: skip
    assert [row[0].bytes for row in Database(url).query("SELECT request_id FROM aos.unfinished")[1]] == [
        request_id(2)
    ]
    assert one(url, "SELECT count(*) FROM aos.doubled") == 0
    execute(
        url,
        "INSERT INTO aos_data.result (requested_at, request_id, round) "
        "SELECT requested_at + interval '1 s', request_id, round FROM aos_data.result",
    )
    assert one(url, "SELECT count(*) FROM aos.doubled") == 1


async def test_a_redriven_request_has_one_row_a_round_from_its_beginning(url: str) -> None:
    """Supervise writes the first row again with the next round's number (streams/supervise.py)."""
    begun = portion("aos.ledger", 0, "entry", requested(1), requested(1, round=1))
    ends = [experience(1, "request", round=number) for number in (0, 1)]
    await write_all(url, [[begun, portion("aos.experiences", 0, "experience", ends[0])]])
    rounds = "SELECT round, status FROM aos.tasks ORDER BY 1"
    assert Database(url).query(rounds)[1] == [(0, "ok"), (1, "open")]
    assert Database(url).query("SELECT request_id, round FROM aos.unfinished")[1] == [
        (UUID(bytes=request_id(1)), 1)
    ]
    await write_all(url, [[portion("aos.experiences", 1, "experience", ends[1])]])
    assert Database(url).query(rounds)[1] == [(0, "ok"), (1, "ok")]
    assert one(url, "SELECT (SELECT count(*) FROM aos.unfinished) + (SELECT count(*) FROM aos.doubled)") == 0


async def test_steps_show_the_last_attempt_and_those_never_tried(url: str) -> None:
    steps = [ledger_step("a"), ledger_step("b", "write"), ledger_step("c", None)]
    tries = [experience(1, attempt=n, status=s, cost_usd_micros=n) for n, s in ((1, "failed"), (2, "ok"))]
    await write_all(url, [[portion("aos.ledger", 0, "entry", requested(1, steps=steps)),
                           portion("aos.experiences", 0, "experience", *tries)]])  # fmt: skip
    sql = "SELECT step, status, attempts, cost_usd_micros::int, task_kind FROM aos.steps ORDER BY step"
    assert Database(url).query(sql)[1] == [
        (0, "ok", 2, 3, "write"),
        (1, "waiting", 0, 0, "write"),
        (2, "waiting", 0, 0, "write"),
    ]


async def test_views_hold_the_last_word_of_their_topic(url: str) -> None:
    def belief(agent: str, count: float) -> dict[str, Any]:
        return {
            "domain": "d", "task_kind": "read", "agent": agent, "count": count, "score": 0.5, "deviation": 0.1,
            "latency_us": 1.0, "cost_usd_micros": 1.0, "cpu_us": 1.0, "drift_count": 0, "model_version": 1,
            "updated_at": START,
        }  # fmt: skip

    await write_all(url, [[portion("aos.beliefs", 0, "belief", belief("ann", 1), belief("bob", 1))],
                          [portion("aos.beliefs", 1, "belief", belief("ann", 2))]])  # fmt: skip
    assert Database(url).query("SELECT agent, count FROM aos.beliefs")[1] == [("ann", 2.0)]


async def test_agents_states_are_current_and_seen_at_moves_in_steps(url: str) -> None:
    def agent(state: str, seen_s: int) -> dict[str, Any]:
        return {
            "service": "s", "agent": "ann", "state": state, "capabilities": ["read"], "cell": "default",
            "cell_partition": 0, "capacity": 1, "replicas": 1, "price_usd_micros": 0, "timeout_ms": 0,
            "fallback": False, "registered_at": START, "seen_at": START + seen_s * 1_000_000, "version": seen_s,
        }  # fmt: skip

    async def seen(*states: tuple[str, int]) -> tuple[str, int]:
        forget(url)
        await write_all(
            url, [[portion("aos.agent-states", n, "agent-state", agent(*s))] for n, s in enumerate(states)]
        )
        state, at = Database(url).query("SELECT state, seen_at FROM aos.agents")[1][0]
        return state, int(at.timestamp() - START / 1e6)

    assert await seen(("idle", 0), ("idle", 4)) == ("idle", 0)
    assert await seen(("idle", 0), ("idle", 4), ("idle", 12)) == ("idle", 12)
    assert await seen(("idle", 0), ("gone", 3)) == ("gone", 3)


async def test_nothing_is_traded_for_speed(url: str) -> None:
    sink: TimescaleSink = sink_on(url)
    await sink.open(PARTITIONS)
    assert sink._link is not None
    for name in ("fsync", "synchronous_commit"):
        row = await (await sink._link.execute(f"SHOW {name}".encode())).fetchone()
        assert row == ("on",), name
    await sink.close()


async def test_decisions_of_two_cells_for_one_attempt_stand_beside_each_other(url: str) -> None:
    refused = decision(1, kind="refused", cell="a", agent=None, violated="capacity")
    await write_all(url, [[portion("aos.decisions", 0, "decision", refused, decision(1, cell="b"))]])
    sql = "SELECT kind, violated, candidate_agents, filtered_reasons FROM aos.decisions ORDER BY kind"
    agents = ["ann", "bob", "cid", "dee"]
    assert Database(url).query(sql)[1] == [
        ("assigned", None, agents, ["capability"]),
        ("refused", "capacity", agents, ["capability"]),
    ]


async def test_payloads_come_to_sql_only_when_asked_for(url: str) -> None:
    asked = requested(1, steps=[ledger_step(payload=b"\x00in")])
    answer = common(1) | {"kind": "outcome", "step": 0, "attempt": 1, "agent": "ann", "payload": b"out\xff"}
    await write_all(url, [[portion("aos.ledger", 0, "entry", asked, answer)]])
    assert one(url, "SELECT count(*) FROM aos.payloads") == 0
    forget(url)
    await write_all(url, [[portion("aos.ledger", 0, "entry", asked, answer)]], store_payloads=True)
    rows = Database(url).query("SELECT direction, body FROM aos.payloads ORDER BY 1")[1]
    assert rows == [("in", b"\x00in"), ("out", b"out\xff")]
