"""Delegation and shared contexts on the running AOS: through the SDK, over a crash, and in SQL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aos.infra import why
from aos.infra.up import Up
from tests.stack.loopkit import produce_json, read_topic, running, settings_for, sql, sql_until
from tests.stack.test_contract import check, pages, read

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def up(stack: Any, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    settings = settings_for(stack.bootstrap, database_url, "tfamily.")
    with running(settings, services=0) as up:
        env = {"AOS_BOOTSTRAP": stack.bootstrap, "AOS_PREFIX": "tfamily.", "PATH": "/usr/bin:/bin"}
        died = tmp_path_factory.mktemp("family") / "died"
        argv = [sys.executable, str(HERE / "family_service.py"), "family", str(died)]
        up.stack.children.spawn(
            "service-family", argv, env=env, log_path=up.stack.data_dir / "service-family.log", restart=True
        )
        yield up


def ask(up: Up, **request: Any) -> dict[str, Any]:
    """The result of one request."""
    produce_json(up, [request])
    rows = read_topic(up, "aos.results", lambda rows: any(r["id"] == request["id"] for r in rows), 60)
    (found,) = {r["request_id"]: r for r in rows if r["id"] == request["id"]}.values()
    return found


def children(up: Up, parent: dict[str, Any], count: int) -> list[tuple[Any, ...]]:
    """The children in SQL, once there are `count`."""
    query = (
        "SELECT request_id, depth, status, code, cost_usd_micros, id FROM aos.tasks WHERE parent_id = "
        f"'{parent['request_id'].hex()}' AND status <> 'open' ORDER BY id"
    )
    return sql_until(up, query, lambda rows: len(rows) >= count)


def test_an_agent_hands_out_parts_and_sums_what_comes_back_and_its_cost_is_theirs_too(up: Up) -> None:
    found = ask(up, id="sum", text="1 2 3", require=["plan"], budget_usd_micros=10_000)
    assert (found["status"], found["payload"], found["code"]) == ("ok", b"12", None)
    assert found["cost_usd_micros"] == 30
    rows = children(up, found, 3)
    assert [(row[1], row[2], row[4]) for row in rows] == [(1, "ok", 10)] * 3
    told = why.tell(why.explain(up.settings.database_url, "sum"))
    assert told.count("delegated in step 0, attempt 1") == 3
    assert f"delegated from {_uuid(found)}" in why.tell(
        why.explain(up.settings.database_url, str(rows[0][0]))
    )


ECHO = ("request_id", "home", "step", "attempt", "agent", "epoch", "token")


def test_a_program_without_the_sdk_delegates_and_shares_by_plain_rows(up: Up) -> None:
    """An agent that is no more than JSON messages: what docs/contract.md says is enough."""
    produce_json(up, [{"service": "plain", "agent": "plain", "capabilities": ["plain"]}], "aos.agents")
    produce_json(up, [{"service": "plain", "replica": "r"}], "aos.heartbeats")
    produce_json(up, [{"id": "plain", "text": "delegate it", "require": ["plain"]}])
    (work,) = _inbox(up, "work", 1)
    echo = {name: _as_json(work[name]) for name in ECHO}
    calls = [
        echo | {"action": "share", "call": "c", "context": '{"by": "plain"}', "context_version": 0},
        echo | {"action": "delegate", "call": "d", "text": "21", "require": ["double"]},
        echo | {"action": "delegate", "call": "d", "text": "21", "require": ["double"]},  # in doubt: again
        echo | {"action": "delegate", "call": "f", "text": "1", "require": ["double"], "token": "00" * 16},
    ]
    produce_json(up, calls, "aos.calls")
    (result,) = _inbox(up, "result", 1)
    (context,) = _inbox(up, "context", 1)
    assert (result["call"], result["status"], result["payload"]) == ("d", "ok", b"42")
    assert (context["call"], context["status"], context["context"]) == ("c", "ok", b'{"by":"plain"}')
    produce_json(up, [echo | {"status": "ok", "payload": "done"}], "aos.outcomes")
    rows = read_topic(up, "aos.results", lambda rows: any(r["id"] == "plain" for r in rows), 30)
    (found,) = {r["request_id"]: r for r in rows if r["id"] == "plain"}.values()
    assert (found["status"], found["payload"]) == ("ok", b"done")
    assert len(children(up, found, 1)) == 1
    query = "SELECT code FROM aos.notes WHERE kind = 'ignored' AND agent = 'plain'"
    assert sql_until(up, query, lambda rows: rows) == [("AOS3007",)]


def _inbox(up: Up, kind: str, count: int) -> list[dict[str, Any]]:
    """Rows of a kind in the plain agent's inbox; it goes on beating meanwhile."""
    found: list[dict[str, Any]] = []
    for _ in range(20):
        produce_json(up, [{"service": "plain", "replica": "r"}], "aos.heartbeats")
        rows = read_topic(
            up, "aos.inbox.plain", lambda rows: sum(r["kind"] == kind for r in rows) >= count, 2
        )
        found = [row for row in rows if row["kind"] == kind]
        if len(found) >= count:
            break
    return found


def _as_json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def test_an_agent_that_dies_while_it_waits_gets_the_same_children_and_no_others(up: Up) -> None:
    found = ask(up, id="crash", text="7 8", require=["plan"], budget_usd_micros=10_000)
    assert (found["status"], found["payload"]) == ("ok", b"30")
    assert found["attempts"] == 1
    assert [row[2] for row in children(up, found, 2)] == ["ok", "ok"]
    assert [row[5].rsplit("/", 1)[1] for row in children(up, found, 2)] == ["0", "1"]


def test_a_chain_of_delegations_ends_at_depth_four_with_a_code(up: Up) -> None:
    found = ask(up, id="deep", text="go", require=["deep"])
    assert (found["status"], found["payload"]) == ("ok", b"go.... AOS2201")
    rows = sql_until(
        up,
        "SELECT depth, code FROM aos.tasks WHERE depth IS NOT NULL AND code = 'AOS2201'",
        lambda rows: rows,
    )
    assert rows == [(5, "AOS2201")]


def test_members_of_a_request_write_one_context_at_once_and_the_step_after_them_reads_it(up: Up) -> None:
    names = [f"w{number}" for number in range(4)]
    steps: list[dict[str, Any]] = [
        {"name": name, "require": ["write"], "text": f"by {name}"} for name in names
    ]
    steps.append({"name": "last", "require": ["read"], "after": names, "text": "read"})
    found = ask(up, id="shared", steps=steps)
    assert found["payload"] == f"4 {names}".encode()
    whose = f"request_id = '{found['request_id'].hex()}'"
    query = f"SELECT context_version, context FROM aos.contexts WHERE {whose} ORDER BY 1"
    rows = sql_until(up, query, lambda rows: len(rows) == 4)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert json.loads(rows[-1][1]) == {name: f"by {name}" for name in names}
    assert "context 4 by writer" in why.tell(why.explain(up.settings.database_url, "shared"))


def test_agents_that_wait_for_each_other_are_told_once_and_freed_by_their_time_outs(up: Up) -> None:
    produce_json(up, [{"id": f"c-{who}", "text": "ask", "require": [who]} for who in ("left", "right")])
    rows = read_topic(
        up, "aos.results", lambda rows: {"c-left", "c-right"} <= {row["id"] for row in rows}, limit_s=60
    )
    ends = {row["id"]: (row["status"], row["payload"]) for row in rows if (row["id"] or "").startswith("c-")}
    assert {status for status, _ in ends.values()} == {"ok"}
    assert b"AOS3013" in {payload for _, payload in ends.values()}
    query = (
        "SELECT alert, kind, evidence FROM aos.alerts WHERE source = 'supervise' ORDER BY seen_at, kind DESC"
    )
    alerts = sql_until(up, query, lambda rows: len(rows) >= 2)
    assert [kind for _, kind, _ in alerts] == ["opened", "cleared"]
    assert json.loads(alerts[0][2])["agents"] == ["left", "right"]
    documented, records = pages()
    told = read(up, "aos.alerts")
    assert told
    for message in told:
        check(message, records[documented["aos.alerts"]], documented["aos.alerts"])


def test_a_cancel_reaches_the_child_and_the_agent_that_works_on_it(up: Up) -> None:
    produce_json(up, [{"id": "long", "text": "long", "require": ["boss"]}])
    query = "SELECT 1 FROM aos.decisions WHERE agent = 'sleeper'"
    assert sql_until(up, query, lambda rows: rows)
    produce_json(up, [{"action": "cancel", "id": "long"}], "aos.controls")
    long = "(SELECT request_id FROM aos.tasks WHERE id = 'long')"
    ended = f"SELECT status FROM aos.tasks WHERE request_id = {long} OR parent_id = {long}"
    rows = sql_until(up, ended, lambda rows: rows == [("cancelled",)] * 2)
    assert rows == [("cancelled",)] * 2
    inbox = read_topic(up, "aos.inbox.family", lambda rows: sum(r["kind"] == "cancel" for r in rows) >= 2, 20)
    assert {"boss", "sleeper"} <= {row["agent"] for row in inbox if row["kind"] == "cancel"}
    assert sql(up, "SELECT count(*) FROM aos.doubled") == [(0,)]


def _uuid(row: dict[str, Any]) -> str:
    text = row["request_id"].hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
