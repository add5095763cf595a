"""Coverage that counts: how much of the topology was crossed against the real broker, by all tests of the stack."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aos.codecs.topics import LANES
from aos.streams.topology import PROCESSORS
from tests.stack.edges import SHARE_MIN, Crossing, all_edges, crossed, told
from tests.stack.loopkit import produce_json, read_topic, running, settings_for, sql_until

ANY = "00" * 16
# a good message of each input of admit that no service and no client of other tests writes for sure
SAID: dict[str, dict[str, Any]] = {
    "aos.feedback": {"id": "one", "score": 0.5},
    "aos.controls": {"action": "pause", "service": "nobody", "agent": "nobody"},
    "aos.observations": {"case": "c", "activity": "a", "resource": "r", "time": 1_700_000_000_000},
    "aos.calls": {
        "action": "delegate", "call": "c", "request_id": ANY, "home": 0, "step": 0, "attempt": 1, "agent": "nobody",
        "epoch": 1, "token": ANY, "text": "forged",
    },
}  # fmt: skip
INPUTS = ("aos.requests", *PROCESSORS["admit"].reads)
WAY = {  # of one request of priority 1, as far as every worker is sure to have said so at its end
    ("aos.requests", "encode", "aos.tasks"),
    ("aos.requests", "encode", "aos.ledger"),
    ("aos.tasks", "match", "aos.matches"),
    ("aos.matches", "compose", "aos.ledger"),
    ("aos.ledger", "supervise", "aos.ready.p1"),
    ("aos.ready.p1", "allocate", "aos.decisions"),
    ("aos.outcomes", "admit", "aos.ledger"),
    ("aos.ledger", "supervise", "aos.results"),
}
EVERY_TIME = {  # when outsiders have sent all that they may
    edge
    for edge in all_edges()
    if edge[1] in ("encode", "admit", "collect", "match", "compose") or edge[0] in LANES
}


def crossed_until(crossings: Path, wanted: set[Crossing], limit_s: float = 20.0) -> set[Crossing]:
    """What was crossed, at the latest when the time is up: a worker says so after the broker has said so to it."""
    ends = time.monotonic() + limit_s
    while not (found := crossed(crossings)) >= wanted and time.monotonic() < ends:
        time.sleep(0.1)
    return found


def test_each_message_crosses_the_edges_of_its_way_and_no_others(
    bootstrap: str, database_url: str, topic_prefix: str, crossings: Path
) -> None:
    """The counting itself, in a run of its own; then all that outsiders may send, so that no edge is left to chance."""
    before = crossings.read_text() if crossings.exists() else ""
    crossings.write_text("")
    with running(settings_for(bootstrap, database_url, topic_prefix)) as up:
        produce_json(up, [{"id": "one", "text": "hello", "require": ["shout"], "priority": 1}])
        assert read_topic(up, "aos.results", bool)
        found = crossed_until(crossings, WAY)
        lanes = [
            {"id": f"p{lane}", "text": "hello", "require": ["shout"], "priority": lane} for lane in range(4)
        ]
        produce_json(up, lanes)
        for topic, row in SAID.items():
            produce_json(up, [row], topic)
        produce_json(up, [{"action": "cancel", "id": "one"}], "aos.controls")
        for topic in INPUTS:
            produce_json(up, [{"no such key": 1}], topic)
        read_topic(up, "aos.results", lambda rows: len(rows) == 5)
        query = "SELECT count(DISTINCT topic) FROM aos.dead_letters"
        assert sql_until(up, query, lambda rows: rows[0][0] == len(INPUTS)) == [(len(INPUTS),)]
        query = "SELECT count(DISTINCT kind) FROM aos.notes WHERE kind IN ('foreign', 'correction')"
        assert sql_until(up, query, lambda rows: rows[0][0] == 2) == [(2,)]
        after = crossed_until(crossings, EVERY_TIME)
    crossings.write_text(before + crossings.read_text())
    assert found >= WAY
    assert not {"aos.ready.p0", "aos.ready.p2", "aos.ready.p3", "aos.dead-letters"} & {
        one[2] for one in found
    }
    assert after >= EVERY_TIME, f"never crossed: {told(EVERY_TIME - after)}"


@pytest.mark.usefixtures("stack", "whole_run")
def test_over_nine_tenths_of_the_edges_are_crossed_on_the_real_broker(
    crossings: Path, measured: Callable[[str], None]
) -> None:
    edges = all_edges()
    found = {edge for edge in crossed(crossings) if not edge[1].startswith("toy")}  # the shell's own tests
    never = edges - found
    share = 1 - len(never) / len(edges)
    measured(f"{len(edges) - len(never)} of {len(edges)} edges of the topology crossed; never: {told(never)}")
    assert not found - edges, f"crossed, and not in the topology: {told(found - edges)}"
    assert share > SHARE_MIN, f"{share:.0%} of the edges were crossed; never: {told(never)}"
