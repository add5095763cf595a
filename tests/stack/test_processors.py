"""Pause, drain and resume of the real processors by command, under load: every request ends once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings
from aos.infra.logs import append
from aos.infra.up import Up
from tests.stack.loopkit import produce_json, run, running, settings_for, sql, sql_until
from tests.stack.test_config import aos

DAY_MS = 86_400_000
EPOCH = time.time_ns() // 1000


def told(settings: Settings, *arguments: str) -> Any:
    """What a command says as JSON; it must succeed."""
    done = aos(settings, *arguments, "-o", "json")
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def states(settings: Settings) -> dict[str, str]:
    return {row["processor"]: row["state"] for row in told(settings, "status")["processors"]}


@contextmanager
def flowing(up: Up, name: str, sent: list[str], every_s: float = 0.05) -> Iterator[None]:
    """Requests for as long as it lasts; their ids go to `sent` once they are acknowledged."""
    stop = threading.Event()

    def flow() -> None:
        while not stop.wait(every_s):
            id = f"{name}-{len(sent)}"
            produce_json(up, [{"id": id, "text": "hello", "require": ["shout"], "deadline_ms": DAY_MS}])
            sent.append(id)

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_processors_stand_and_go_on_by_command_and_every_request_ends_once(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    """Each of a task's way, the learner and the store; allocate's worker is killed while it stands, encode is drained.

    Also supervise, for longer than encode yields to it: what waited in between goes on by itself.
    """
    settings = settings_for(bootstrap, database_url, topic_prefix, timeout_ms=60_000)
    sent: list[str] = []
    with running(settings) as up:
        with flowing(up, "work", sent):
            sql_until(
                up, "SELECT count(*) FROM aos.tasks WHERE status = 'ok'", lambda rows: rows[0][0] > 5, 60
            )
            for name in ("match", "admit", "store", "learn"):
                (row,) = told(settings, "processors", "pause", name, "--wait", "--reason", "a test")
                assert (row["state"], row["reason"]) == ("paused", "a test")
            assert {name for name, state in states(settings).items() if state == "paused"} == {
                "match", "admit", "store", "learn",
            }  # fmt: skip
            health = told(settings, "health")
            assert health["healthy"]
            assert health["standing"]["admit"] == "paused"
            told(settings, "processors", "resume", "match", "admit", "store", "learn", "--wait")
            told(settings, "processors", "pause", "supervise", "allocate", "--wait")
            up.kill_worker("core")
            time.sleep(8.0)  # longer than supervise may be behind before encode waits for it
            up.wait_ready()
            assert {states(settings)[name] for name in ("supervise", "allocate")} == {"paused"}
            asked = sql(up, "SELECT count(*) FROM aos.requests")[0][0]
            told(settings, "processors", "resume", "supervise", "allocate", "--wait")
            sql_until(up, "SELECT count(*) FROM aos.tasks WHERE status = 'ok'", lambda r: r[0][0] > asked, 60)
            began = time.monotonic()
            (drained,) = told(settings, "processors", "drain", "encode", "--wait", "--timeout", "60")
            assert drained["state"] == "drained"
            measured(f"drained under load in {time.monotonic() - began:.1f} s")
            assert sql(up, "SELECT count(*) FROM aos.unfinished")[0][0] == 0
            waits = len(sent)
        told(settings, "processors", "resume", "encode", "--wait")
        assert waits <= len(sent)
        enough = f"SELECT count(*) FROM aos.tasks WHERE status = 'ok' HAVING count(*) >= {len(sent)}"
        assert sql_until(up, enough, bool, 60), sql(
            up, "SELECT status, code, count(*) FROM aos.tasks GROUP BY 1, 2"
        )
        ended = sql(up, "SELECT id, count(*) FROM aos.tasks WHERE status = 'ok' GROUP BY id")
        assert dict(ended) == dict.fromkeys(sent, 1)
        assert sql(up, "SELECT count(*) FROM aos.doubled")[0][0] == 0
    measured(f"{len(sent)} requests while seven processors stood in turn: 0 lost, 0 twice")


def alert(name: str, kind: str, seen_at: int) -> Any:
    row = {
        "alert": name, "kind": kind, "source": "admit", "subject": "aos.feedback", "message": "it is gone",
        "evidence": "{}", "seen_at": EPOCH + seen_at,
    }  # fmt: skip
    return from_dicts("alert", [row])


def test_health_fails_while_an_alert_is_open_and_sql_has_what_is(
    bootstrap: str, database_url: str, topic_prefix: str
) -> None:
    """Said twice it is open once, since the first time; cleared and opened again it is open since then."""
    settings = settings_for(bootstrap, database_url, topic_prefix)
    with running(settings, services=0) as up:
        told(settings, "health")
        for name, kind, at in (
            ("a", "opened", 10), ("a", "opened", 20), ("b", "opened", 10), ("b", "cleared", 11), ("c", "opened", 5),
            ("c", "cleared", 6), ("c", "opened", 7), ("c", "opened", 9),
        ):  # fmt: skip
            run(append(settings, "aos.alerts", alert(name, kind, at), b"", ""))
        done = aos(settings, "health", "-o", "json")
        assert done.returncode == 1
        report = json.loads(done.stdout)
        assert [one["alert"] for one in report["alerts"]] == ["a", "c"]
        assert (report["processors"], report["healthy"]) == ("up", False)
        times = [f"(extract(epoch FROM {name}) * 1e6)::bigint - {EPOCH}" for name in ("opened_at", "seen_at")]
        query = f"SELECT alert, {', '.join(times)} FROM aos.open_alerts ORDER BY 1"
        assert sql_until(up, query, lambda rows: len(rows) == 2) == [("a", 10, 20), ("c", 7, 9)]
        for name in ("a", "c"):
            run(append(settings, "aos.alerts", alert(name, "cleared", 30), b"", ""))
        told(settings, "health")
        assert sql_until(up, query, lambda rows: not rows) == []


def test_a_plain_message_is_an_order_and_what_is_none_is_told(
    bootstrap: str, database_url: str, topic_prefix: str
) -> None:
    """Also admit, which reads all other orders, is told to go on by one; nobody needs to run for it."""
    from confluent_kafka import Producer

    from aos.infra.runtime import make_topics

    settings = settings_for(bootstrap, database_url, topic_prefix)
    make_topics(settings)
    producer = Producer({"bootstrap.servers": bootstrap})
    for key, value in (
        (b"admit", {"processor": "admit", "action": "pause", "reason": "by hand"}),
        (b"mine", {"processor": "match", "action": "pause"}),
        (b"learn", {"processor": "learn", "action": "drain"}),
        (b"lern", {"processor": "lern", "action": "pause"}),
    ):
        producer.produce(f"{topic_prefix}aos.processors", json.dumps(value).encode(), key)
    assert producer.flush(30) == 0
    done = aos(settings, "processors", "list", "-o", "json")
    rows = {row["processor"]: row for row in json.loads(done.stdout)}
    assert (rows["admit"]["action"], rows["admit"]["reason"]) == ("pause", "by hand")
    assert [name for name, row in rows.items() if row.get("action")] == ["admit"]
    assert [line.split(" is ")[0] for line in done.stderr.splitlines()] == [
        f"aos.processors, offset {offset}," for offset in (1, 2, 3)
    ]
    assert done.stderr.count("AOS1014") == 3
    for arguments, says in ((("pause", "lern"), "choose from"), (("drain", "learn"), "pause any other")):
        refused = aos(settings, "processors", *arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert says in refused.stderr
