"""One request through all twelve processors: JSON in, a result out, a row in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from aos.infra.up import Up
from aos.streams.processor import Views
from aos.streams.views import settings_version
from tests.stack.loopkit import produce_json, read_topic, running, settings_for, sql, sql_until


@pytest.fixture
def up(bootstrap: str, database_url: str, topic_prefix: str) -> Iterator[Up]:
    with running(settings_for(bootstrap, database_url, topic_prefix)) as up:
        yield up


def test_a_json_request_becomes_a_result_and_a_row(up: Up) -> None:
    produce_json(up, [{"id": "first", "text": "hello", "require": ["shout"]}])
    rows = read_topic(up, "aos.results", lambda rows: bool(rows))
    assert [(row["id"], row["status"], row["payload"]) for row in rows] == [("first", "ok", b"HELLO")]
    query = "SELECT id, status, attempts FROM aos.tasks WHERE id = 'first'"
    assert sql_until(up, query, lambda rows: rows and rows[0][1] != "open") == [("first", "ok", 1)]
    (count,) = sql_until(up, "SELECT count(*) FROM aos.decisions", lambda rows: rows[0][0])[0]
    assert count == 1


def test_steps_receive_the_outputs_of_those_they_come_after(up: Up) -> None:
    steps = [
        {"name": "a", "text": "left", "require": ["shout"]},
        {"name": "b", "text": "right", "require": ["shout"]},
        {"name": "c", "require": ["join"], "after": ["a", "b"]},
    ]
    produce_json(up, [{"id": "flow", "text": "a flow", "steps": steps}])
    rows = read_topic(up, "aos.results", lambda rows: bool(rows))
    assert [(row["status"], row["payload"]) for row in rows] == [("ok", b"LEFT+RIGHT")]


def test_every_way_to_end_is_one_typed_result(up: Up) -> None:
    requests = [
        {"id": "refused", "text": "fail for good", "require": ["moody"]},
        {"id": "cycle", "text": "x", "steps": [{"name": "a", "after": ["b"]}, {"name": "b", "after": ["a"]}]},
        {"id": "expired", "text": "sleep 5", "require": ["moody"], "deadline_ms": 1500},
        {"id": "good", "text": "fine", "require": ["moody"]},
        {"id": "judged", "text": "x", "steps": [
            {"name": "work", "require": ["moody"]}, {"name": "check", "require": ["judge"], "judges": "work"}]},
    ]  # fmt: skip
    produce_json(up, requests)
    rows = read_topic(up, "aos.results", lambda rows: len(rows) >= len(requests))
    ends = {row["id"]: (row["status"], row["code"]) for row in rows}
    assert ends == {
        "refused": ("failed", "AOS3001"),
        "cycle": ("rejected", "AOS2001"),
        "expired": ("expired", "AOS3003"),
        "good": ("ok", None),
        "judged": ("ok", None),
    }
    scores = {row["id"]: row["score"] for row in rows}
    assert scores["good"] == pytest.approx(0.25)
    assert scores["judged"] == pytest.approx(0.75)


def test_a_repeated_id_gets_the_same_result_again(up: Up) -> None:
    produce_json(up, [{"id": "again", "text": "once", "require": ["shout"]}])
    read_topic(up, "aos.results", lambda rows: bool(rows))
    produce_json(up, [{"id": "again", "text": "once", "require": ["shout"]}])
    rows = read_topic(up, "aos.results", lambda rows: len(rows) == 2)
    assert [(row["payload"], row["repeated"]) for row in rows] == [(b"ONCE", False), (b"ONCE", True)]


def test_each_round_of_a_redriven_request_is_a_row_that_says_which_settings_decided(up: Up) -> None:
    produce_json(up, [{"id": "twice", "text": "hello", "require": ["shout"]}])
    rounds = "SELECT round, status, settings_version FROM aos.tasks WHERE id = 'twice' ORDER BY round"
    decided = settings_version(Views(settings=up.settings))
    assert sql_until(up, rounds, lambda rows: rows and rows[0][1] != "open") == [(0, "ok", decided)]
    produce_json(up, [{"action": "redrive", "id": "twice"}], "aos.controls")
    rows = sql_until(up, rounds, lambda rows: len(rows) == 2 and rows[1][1] != "open")
    assert rows == [(0, "ok", decided), (1, "ok", decided)]
    versions = (
        "SELECT DISTINCT settings_version FROM aos.decisions UNION SELECT settings_version FROM aos.attempts"
    )
    assert sql_until(up, versions, bool) == [(decided,)]
    assert settings_version(Views(settings=replace(up.settings, candidates_max=1))) != decided
    assert sql(up, "SELECT count(*) FROM aos.unfinished WHERE id = 'twice'") == [(0,)]
