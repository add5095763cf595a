"""The ladder in the whole topology: learn stands still, its view is poisoned; work goes on and says on which rung."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aos.analytics.beliefs import key_of
from aos.codecs.rows import from_dicts
from aos.streams.processor import Output
from aos.streams.simulated_log import CALM
from tests.simulation.agents import GOOD
from tests.simulation.clients import Client
from tests.simulation.invariants import results
from tests.simulation.scene import TENANTS, Scene, scene

RUNGS = ("last-beliefs", "prior", "round-robin")
KINDS = ("draw", "write", "count", "judge", "both")
DOMAINS = (*TENANTS, *(f"{tenant}/side" for tenant in TENANTS))


def poison(played: Scene, kinds: tuple[str, ...]) -> None:
    """A record that is no belief (it lacks the row of any agent) under the keys of these kinds in every domain."""
    world = played.simulation.world
    for tenant in DOMAINS:
        for kind in kinds:
            row = {
                "domain": tenant, "task_kind": kind, "agent": "nobody", "count": 1.0, "score": 0.5, "deviation": 0.1,
                "latency_us": 1.0, "cost_usd_micros": 0.0, "cpu_us": 0.0, "drift_count": 0, "weights": [0.0] * 17,
                "variances": [0.0] * 17, "model_version": 1, "updated_at": world.clock,
            }  # fmt: skip
            world.append(Output("aos.beliefs", from_dicts("belief", [row]), 0, key_of(tenant, kind)))


def without_learn(played: Scene) -> None:
    """Learn is away for good: what it taught is the last that is known."""
    for process in played.simulation.processes:
        process.loops = [loop for loop in process.loops if loop.processor.name != "learn"]
        process.places = [place for place in process.places if place.processor.name != "learn"]


def decided(played: Scene) -> Counter[str | None]:
    return Counter(row["rung"] for row in played.simulation.world.rows("aos.decisions"))


def ended(played: Scene) -> None:
    """Until all is sent and every request has ended."""
    sim = played.simulation

    def over() -> bool:
        states = [sim.loop("supervise", number).state for number in range(sim.world.count("aos.ledger"))]
        return played.client.done and not any(state.requests for state in states)

    sim.run(until=over)
    assert over()


def taught(seed: int) -> Scene:
    """A world whose first requests have ended and were learned from."""
    played = scene(seed, 40, chances=CALM, habits=GOOD)
    ended(played)
    assert set(decided(played)) == {None}, "in peace nothing is degraded"
    return played


def more(played: Scene, count: int = 20) -> list[dict[str, Any]]:
    """Further requests, played to their ends; their results."""
    sim = played.simulation
    client = Client(played.client._made + count, TENANTS, trouble=0.0)
    client._made = played.client._made  # ids of its own
    sim.actors = (*played.services, client)
    before = {row["request_id"] for row in results(sim.world)}
    played.client = client
    ended(played)
    ends = [row for row in results(sim.world) if row["request_id"] not in before]
    sent = {request_id for request_id, one in client.sent.items() if not one.wrong}
    assert sent <= {row["request_id"] for row in ends}, "work goes on, whatever it is decided by"
    return ends


def restart_match(played: Scene) -> None:
    """It reads the views anew: of a compacted topic only the last record of each key is left."""
    for process in played.simulation.processes:
        if any(loop.processor.name == "match" for loop in process.loops):
            process.start()


@pytest.mark.parametrize("seed", range(1, 4))
def test_under_poisoned_beliefs_the_last_good_ones_decide_and_every_answer_says_so(seed: int) -> None:
    played = taught(seed)
    without_learn(played)
    poison(played, ("", *KINDS))
    ends = more(played)
    assert {row["status"] for row in ends} >= {"ok"}
    worked = [row for row in ends if row["attempts"] and row["agents"]]
    assert worked
    assert {row["rung"] for row in worked} <= set(RUNGS)
    assert "last-beliefs" in {row["rung"] for row in worked}
    assert all(row["degraded"] == (row["rung"] is not None) for row in ends)
    for row in played.simulation.world.rows("aos.experiences"):
        assert row["degraded"] == (row["rung"] is not None)


def test_a_restart_on_poisoned_beliefs_goes_down_the_ladder_and_a_good_record_leads_up_again() -> None:
    played = taught(5)
    world = played.simulation.world
    good = {entry.key: entry for entry in world.entries("aos.beliefs")}
    without_learn(played)
    poison(played, KINDS)  # what is believed over all kinds of work is still good
    restart_match(played)
    more(played)
    assert decided(played)["prior"] > decided(played)["round-robin"], (
        "round-robin: a domain nobody was taught"
    )
    poison(played, ("",))
    restart_match(played)
    more(played)
    assert decided(played)["round-robin"] > 0
    before = decided(played)
    for key, entry in good.items():
        world.append(Output("aos.beliefs", entry.rows, 0, key))
    more(played)
    last = decided(played) - before
    assert last[None] > 0
    assert last[None] > last["prior"], "prior: a kind nobody was taught, poisoned and never mended"
    assert last["last-beliefs"] == last["round-robin"] == 0
