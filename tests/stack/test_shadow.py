"""A log played again in its shadow: the same rows come out, and nothing anywhere is changed by it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from aos.codecs.settings import Settings
from aos.infra.shadow import Report, Stretch, replay
from aos.infra.store import digests
from aos.infra.watch import topics
from aos.streams.topology import PROCESSORS
from tests.stack.loopkit import produce_json, run, running, settings_for, sql, sql_until
from tests.stack.test_config import aos

EQUAL = ("encode", "admit", "supervise", "collect", "learn", "mine")  # the law promises their rows
CALM_S = 3.0
OPEN = ("register", "match", "compose", "allocate", "optimise")  # they look at what is not in their log


async def commits(settings: Settings) -> dict[str, Any]:
    """Every group, with what it has committed."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap)
    await admin.start()
    try:
        names = [name for name, _ in await admin.list_consumer_groups()]
        return {name: await admin.list_consumer_group_offsets(name) for name in names}
    finally:
        await admin.close()


def everything(settings: Settings) -> tuple[Any, Any, Any]:
    """What a replay must leave as it is: topics with their messages, groups with their offsets, tables."""
    return run(topics(settings)), run(commits(settings)), digests(settings.database_url)


def played(
    settings: Settings, name: str, begin: datetime.datetime, end: datetime.datetime, **more: Any
) -> tuple[Report, list[Any]]:
    rows: list[Any] = []
    return run(replay(settings, Stretch(name, begin, end, **more), rows.append)), rows


def some_work(first: int) -> list[dict[str, Any]]:
    """Single steps, workflows with a judge, one that fails for good, one that is rejected, an id said twice."""
    rows: list[dict[str, Any]] = [
        {"id": f"one-{n}", "text": "hello", "require": ["shout"]} for n in range(first, first + 20)
    ]
    steps = [
        {"name": "a", "text": "x", "require": ["moody"]},
        {"name": "b", "text": "y", "require": ["judge"], "judges": "a"},
    ]
    rows += [{"id": f"flow-{n}", "steps": steps} for n in range(first, first + 5)]
    rows += [{"id": f"bad-{first}", "text": "fail", "require": ["moody"]}]
    rows += [{"id": f"cycle-{first}", "steps": [{"name": "a", "after": ["a"], "text": "x"}]}]
    return [*rows, rows[0]]


def test_a_replay_makes_the_rows_again_and_changes_nothing(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None], tmp_path: Path
) -> None:
    """From the beginning, and from the middle, where a state comes from a snapshot or from the log before it. With
    another key of the tokens the inbox is another: a replay that does not see that sees nothing."""
    settings = settings_for(bootstrap, database_url, topic_prefix, partitions=2)
    begin = datetime.datetime.now(datetime.UTC)
    with running(settings) as up:
        ended = "SELECT count(*) FROM aos.tasks WHERE status <> 'open' HAVING count(*) >= {}"
        produce_json(up, some_work(0))
        assert sql_until(up, ended.format(27), bool, 60), sql(up, "SELECT id, status FROM aos.tasks")
        middle = datetime.datetime.now(datetime.UTC)
        produce_json(up, some_work(100))
        assert sql_until(up, ended.format(54), bool, 60), sql(up, "SELECT id, status FROM aos.tasks")
        end = datetime.datetime.now(datetime.UTC)
        time.sleep(
            CALM_S
        )  # what came before the end is done; later heartbeats may come when admit has stopped
    before = everything(settings)
    said = []
    for name in (*EQUAL, *OPEN):
        for start in (begin, middle) if name in ("supervise", "collect", "mine") else (begin,):
            report, rows = played(settings, name, start, end)
            assert not report.failed, report
            assert report.messages > 0, report
            assert len(rows) == sum(report.outputs.values())
            if name in EQUAL:
                assert report.equal is True, (name, report)
            else:
                assert report.equal is None, (name, report)
                # optimise adopts the policies that stand in the view, and publishes none again
                assert start is middle or name == "optimise" or sum(report.outputs.values()) > 0, report
        said.append(f"{name} {report.messages} messages, {sum(report.outputs.values())} rows")
    assert {*EQUAL, *OPEN, "store"} == set(PROCESSORS)
    forged, _ = played(dataclasses.replace(settings, secret="another"), "supervise", begin, end)
    assert forged.equal is False
    assert forged.missing["aos.inbox.one"], "and no answer counts, so that trails and releases are others too"
    part, _ = played(settings, "supervise", begin, end, partitions=(1,))
    assert list(part.states) == [1]
    file = tmp_path / "rows.ndjson"
    done = aos(
        settings, "replay", "log", "collect", "--from", begin.isoformat(), "--out", str(file), "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["equal"] is True
    assert len(file.read_text().splitlines()) == told["outputs"]["aos.experiences"]
    refused = aos(settings, "replay", "log", "store", "--from", "1h")
    assert refused.returncode == 2
    assert "cannot be played" in refused.stderr
    assert everything(settings) == before
    measured("; ".join(said))
