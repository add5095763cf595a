"""The fleet as it lives: many agents at once, agents that stop, a restart that remembers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from aos.infra.migrate import migrate
from aos.infra.store import forget
from aos.infra.up import Up
from tests.stack.loopkit import produce_json, read_topic, running, settings_for, sql, sql_until


@pytest.fixture
def up(bootstrap: str, database_url: str, topic_prefix: str) -> Iterator[Up]:
    with running(settings_for(bootstrap, database_url, topic_prefix, snapshot_s=2), services=2) as up:
        yield up


def test_ten_thousand_agents_register_in_one_go(up: Up, measured: Callable[[str], None]) -> None:
    began = time.monotonic()
    produce_json(
        up,
        [{"service": "crowd", "agent": f"crowd-{n}", "capabilities": [f"c{n % 20}"]} for n in range(10_000)],
        "aos.agents",
    )
    rows = sql_until(
        up,
        "SELECT count(*) FROM aos.agents WHERE service = 'crowd'",
        lambda rows: rows[0][0] == 10_000,
        limit_s=60,
    )
    assert rows == [(10_000,)]
    measured(f"10,000 agents from JSON to SQL in {time.monotonic() - began:.1f} s")


def test_a_stopped_service_is_suspected_then_gone_and_its_work_done_by_another(
    up: Up, measured: Callable[[str], None]
) -> None:
    query = "SELECT count(*) FROM aos.agents WHERE 'moody' = ANY(capabilities) AND capacity > 0"
    sql_until(up, query, lambda rows: rows[0][0] == 2)
    produce_json(up, [{"id": f"slow-{n}", "text": "sleep 2", "require": ["moody"]} for n in range(20)])
    sql_until(up, "SELECT count(*) FROM aos.decisions", lambda rows: rows[0][0] >= 20)
    up.stack.children.signal("service-two", signal.SIGSTOP)
    stopped = time.monotonic()
    seen: dict[str, float] = {}
    while time.monotonic() - stopped < 30 and "gone" not in seen:
        for (state,) in sql(up, "SELECT DISTINCT state FROM aos.agents WHERE service = 'two'"):
            seen.setdefault(state, time.monotonic() - stopped)
        time.sleep(0.2)
    rows = read_topic(up, "aos.results", lambda rows: len({row["id"] for row in rows}) == 20, limit_s=40)
    done = time.monotonic() - stopped
    measured(
        f"stopped: suspected after {seen.get('suspected', -1):.1f} s, gone {seen['gone']:.1f} s, work {done:.1f} s"
    )
    assert {row["status"] for row in rows} == {"ok"}
    assert seen["suspected"] < 5 + 1, "5 s, and what it takes to reach SQL"
    assert seen["gone"] < 15 + 1
    assert done < 30
    up.stack.children.signal("service-two", signal.SIGCONT)


def test_after_a_restart_agents_beliefs_patterns_and_strategies_are_the_same(
    bootstrap: str, database_url: str, topic_prefix: str
) -> None:
    migrate(database_url)
    forget(database_url)  # other tests' fleets
    settings = settings_for(bootstrap, database_url, topic_prefix, mine_every=100, optimise_every=100)
    with running(settings, services=1) as up:
        steps = [{"name": "a", "require": ["shout"]}, {"name": "b", "require": ["join"], "after": ["a"]}]
        produce_json(up, [{"id": f"r{n}", "text": f"text {n}", "steps": steps} for n in range(400)])
        moods = [
            {"id": f"m{n}", "text": "fail" if n % 2 else "fine", "require": ["moody"]} for n in range(300)
        ]
        produce_json(up, moods)  # failures move the policy
        read_topic(up, "aos.results", lambda rows: len(rows) >= 700, limit_s=90)
        before = remembered(up)
        assert all(before.values()), {name: len(rows) for name, rows in before.items()}
    forget(database_url)  # what SQL knew is forgotten: it must come from Kafka again
    with running(settings, services=0) as up:
        after = remembered(up, before)
    assert after == before


def remembered(
    up: Up, wanted: dict[str, list[tuple[object, ...]]] | None = None
) -> dict[str, list[tuple[object, ...]]]:
    """What is known of agents, beliefs, patterns and strategies, once it stands still (or is what is wanted)."""
    queries = {
        "agents": "SELECT agent, service, capabilities FROM aos.agents ORDER BY 1",
        "beliefs": "SELECT domain, task_kind, agent, count, score FROM aos.beliefs ORDER BY 1, 2, 3",
        "patterns": "SELECT domain, pattern, members, support, score FROM aos.patterns ORDER BY 1, 2",
        "strategies": "SELECT name, version, exploration FROM aos.strategies ORDER BY 1, 2",
    }
    found: dict[str, list[tuple[object, ...]]] = {}
    ends = time.monotonic() + 40
    while time.monotonic() < ends:
        again = {name: sql(up, query) for name, query in queries.items()}
        if again == wanted or (wanted is None and again == found and all(again.values())):
            return again
        found = again
        time.sleep(2.5)
    return found
