"""Partitions that are added and workers that come and go, under load: every request ends once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.migrate import migrate
from aos.infra.partitions import extend
from aos.infra.runtime import make_topics, options
from aos.infra.store import forget
from aos.infra.up import Up, worker_name
from aos.streams.shell.topics import Admin
from tests.stack.loopkit import read_topic, run, running, settings_for, sql, sql_until
from tests.stack.test_config import aos
from tests.stack.test_processors import flowing


async def partitions(settings: Settings) -> dict[str, int]:
    async with Admin(options(settings)) as admin:
        return {name: count for name, (_, count) in (await admin.ids()).items()}


def test_a_smaller_number_is_refused_and_nothing_is_added(
    bootstrap: str, database_url: str, topic_prefix: str
) -> None:
    settings = settings_for(bootstrap, database_url, topic_prefix, partitions=2)
    make_topics(settings)
    before = run(partitions(settings))
    with pytest.raises(SettingsError, match="AOS5002"):
        asyncio.run(extend(settings, 1))
    assert run(partitions(settings)) == before


def done(up: Up, least: int, limit_s: float = 90.0) -> None:
    """Wait until so many requests ended well."""
    query = f"SELECT count(*) FROM aos.tasks WHERE status = 'ok' HAVING count(*) >= {least}"
    counts = "SELECT status, code, count(*) FROM aos.tasks GROUP BY 1, 2"
    assert sql_until(up, query, bool, limit_s), sql(up, counts)


def each_once(up: Up, sent: list[str]) -> None:
    """Everything that was sent has ended well, once; a result may stand on its topic twice, with one content."""
    done(up, len(sent))
    assert dict(
        sql(up, "SELECT id, count(*) FROM aos.tasks WHERE status = 'ok' GROUP BY id")
    ) == dict.fromkeys(sent, 1)
    assert sql(up, "SELECT count(*) FROM aos.doubled")[0][0] == 0
    assert sql(up, "SELECT count(*) FROM aos.unfinished")[0][0] == 0
    ids = set(sent)
    results = read_topic(up, "aos.results", lambda rows: {row["id"] for row in rows} >= ids)
    assert {row["id"] for row in results} == ids
    assert len({(row["id"], row["status"], row["payload"]) for row in results}) == len(ids)


def homes(up: Up) -> set[int]:
    return {row["home"] for row in read_topic(up, "aos.ledger", limit_s=5.0) if row["kind"] == "requested"}


def test_after_all_topics_grew_and_all_workers_started_again_all_partitions_are_used(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    """Extended under load by the command; then every worker is started again, while requests go on coming."""
    settings = settings_for(bootstrap, database_url, topic_prefix, timeout_ms=60_000)
    sent: list[str] = []
    with running(settings) as up:
        with flowing(up, "all", sent):
            done(up, 10)
            assert aos(settings, "topics", "extend", "3").returncode == 0
            for group in ("core", "keeping", "learning", "edge"):
                up.stack.children.stop(worker_name(group, 0), 30)
                up.start_worker(group)
            up.wait_ready()
            done(up, len(sent) + 20)
        each_once(up, sent)
        assert homes(up) == {0, 1, 2}
    make_topics(
        settings_for(bootstrap, database_url, topic_prefix, partitions=3)
    )  # experiences stay: no refusal
    measured(f"1 to 3 partitions under load: {len(sent)} requests, 0 lost, 0 twice")


def test_workers_go_from_one_to_four_to_two_under_load_and_every_request_ends_once(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    """Of the edge and of the core; those that go are stopped in good order."""
    migrate(database_url)
    forget(database_url)
    settings = settings_for(bootstrap, database_url, topic_prefix, partitions=4, timeout_ms=60_000)
    sent: list[str] = []
    with running(settings) as up:
        with flowing(up, "scale", sent):
            done(up, 10)
            for ordinal in (1, 2, 3):
                for group in ("edge", "core"):
                    up.start_worker(group, ordinal)
            for ordinal in (1, 2, 3):
                ends = time.monotonic() + 90
                while not (up.ready("edge", ordinal) and up.ready("core", ordinal)):
                    assert time.monotonic() < ends, f"worker {ordinal} is not ready"
                    time.sleep(0.2)
            done(up, len(sent) + 20)
            states = json.loads(aos(settings, "status", "-o", "json").stdout)["processors"]
            assert {row["members"] for row in states if row["processor"] in ("encode", "supervise")} == {4}
            for group in ("edge", "core"):
                for ordinal in (2, 3):
                    up.stack.children.stop(worker_name(group, ordinal), 30)
            done(up, len(sent) + 20)
        each_once(up, sent)
        assert homes(up) == {0, 1, 2, 3}
    measured(f"1 to 4 to 2 workers under load: {len(sent)} requests, 0 lost, 0 twice")
