"""Quotas and shedding while everything dies: limits hold over all partitions, answers are typed, others are untouched.

The laws of `invariants` hold too: one result a round, folds byte-equal to their logs, a lesson an attempt.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.invariants import check, results
from tests.simulation.scene import QUOTAS, Scene, scene
from tests.simulation.test_simulation import STORM

REFUSED = {"AOS2101", "AOS2102", "AOS2103", "AOS2104"}
SECOND = 1_000_000
Round = tuple[bytes, int]


def arrivals(played: Scene) -> dict[Round, tuple[int, str, int]]:
    """Each round of a request: (time of the fold at its first row, tenant, priority)."""
    world = played.simulation.world
    found: dict[Round, tuple[int, str, int]] = {}
    for partition in range(world.count("aos.ledger")):
        now = 0
        for entry in world.read("aos.ledger", partition):
            now = max(now, entry.appended_at)
            for row in entry.rows.select(("kind", "request_id", "round", "tenant", "priority")).to_pylist():
                if row["kind"] == "requested":
                    key = row["request_id"], row["round"]
                    found.setdefault(key, (now, row["tenant"], row["priority"]))
    return found


def callers(played: Scene) -> set[Round]:
    """Rounds that a caller asked for: what agents hand out belongs to one of these and is not counted again."""
    world = played.simulation.world
    return {
        (row["request_id"], row["round"])
        for partition in range(world.count("aos.ledger"))
        for entry in world.read("aos.ledger", partition)
        for row in entry.rows.select(("kind", "request_id", "round", "parent_id")).to_pylist()
        if row["kind"] == "requested" and row["parent_id"] is None
    }


def ends(played: Scene) -> dict[Round, dict[str, Any]]:
    """The first result of each round."""
    found: dict[Round, dict[str, Any]] = {}
    for row in results(played.simulation.world):
        found.setdefault((row["request_id"], row["round"]), row)
    return found


def micros(time: Any) -> int:
    return round(time.timestamp() * SECOND)


def most_in_flight(played: Scene, tenant: str) -> int:
    """At any time, of those that were let in."""
    last, asked = ends(played), callers(played)
    events = []
    for key, (began, owner, _) in arrivals(played).items():
        end = micros(last[key]["finished_at"])
        if key in asked and owner == tenant and last[key]["code"] not in REFUSED and end > began:
            events += [(began, 1), (end, -1)]
    most = now = 0
    for _, change in sorted(events):
        now += change
        most = max(most, now)
    return most


WORLDS: list[tuple[int, str, dict[str, Any]]] = [
    (1, "AOS2101", {"quota_in_flight": {"acme": 30}, "quota_bytes_per_s": {}}),
    (2, "AOS2102", {}),
    (3, "AOS2103", {"quota_in_flight": {"acme": 30}, "quota_bytes_per_s": {"acme": 100.0}}),
    (4, "AOS2104", {"waiting_max": 12}),
]


@pytest.mark.parametrize(("seed", "code", "changed"), WORLDS, ids=[code for _, code, _ in WORLDS])
def test_limits_hold_and_refusals_are_typed_whatever_dies(
    seed: int, code: str, changed: dict[str, Any]
) -> None:
    limits = QUOTAS | changed
    played = scene(seed, 50, chances=STORM if seed == 4 else None, **limits)
    played.play()
    check(played)
    assert most_in_flight(played, "acme") <= limits["quota_in_flight"]["acme"]
    arrived, last, asked = arrivals(played), ends(played), callers(played)
    let_in = sorted(
        began
        for key, (began, tenant, _) in arrived.items()
        if key in asked and tenant == "acme"
        if last[key]["code"] not in REFUSED and last[key]["status"] != "expired"
    )
    rate, burst = QUOTAS["quota_requests_per_s"]["acme"], QUOTAS["quota_burst_s"]
    for first, began in enumerate(let_in):
        for count, at in enumerate(let_in[first:], 1):
            partitions = played.simulation.world.count("aos.ledger")
            assert count <= max(partitions, rate * burst) + rate * (at - began) / SECOND + 1e-3
    for key, row in last.items():
        if row["code"] in REFUSED:
            assert (row["status"], row["agents"], row["attempts"]) == ("rejected", [], 0)
            assert row["retry_after_ms"] > 0
            assert row["code"] == "AOS2104" or arrived[key][1] == "acme"
            assert row["code"] != "AOS2104" or arrived[key][2] > 0
        else:
            assert row["retry_after_ms"] is None
    refused = {key for key, row in last.items() if row["code"] in REFUSED}
    assert code in {row["code"] for row in last.values()}, "the limit of this world was never met"
    worked = {(r["request_id"], r["round"]) for r in played.simulation.world.rows("aos.decisions")}
    assert not refused & worked, "no agent was chosen for what was refused"
