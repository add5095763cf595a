"""The whole topology under kills, moves, lost snapshots, lagging views and agents who misbehave: nothing is lost, twice
or forged. A seed that fails is repeated by ``make simulate SEED=…``."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from aos.streams.processor import Output
from aos.streams.simulated_log import CALM, Chances
from tests.simulation.agents import GOOD
from tests.simulation.invariants import check
from tests.simulation.logs import children, results
from tests.simulation.scene import Scene, scene

STORM = Chances(kill=0.03, move=0.03, rewind=0.02, late=0.6, commit=0.15, snapshot=0.1, view_lag=0.8)


def played(seed: int, requests: int, **how: Any) -> Scene:
    """A world of that seed, played and checked."""
    world = scene(seed, requests, **how)
    world.play()
    check(world)
    return world


@pytest.mark.parametrize("seed", range(1, 16))
def test_nothing_is_lost_twice_or_forged_whatever_dies(seed: int) -> None:
    played(seed, 40)


@pytest.mark.parametrize("seed", range(1, 4))
def test_nothing_is_lost_twice_or_forged_in_a_storm(seed: int) -> None:
    found = played(seed, 25, chances=STORM)
    assert found.simulation.kills > 10


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_nothing_is_lost_twice_or_forged_in_many_worlds(seed: int) -> None:
    played(seed, 40, chances=STORM if seed % 4 == 0 else None)


def test_the_worlds_are_not_all_sunshine() -> None:
    """What is simulated must happen: every end of a request and of an attempt, repeats, redrives, patterns."""
    wanted = {"ok", "failed", "rejected", "cancelled", "round 1", "repeated", "refused", "attempt timeout"}
    wanted |= {"delegated", "shared", "context", "child ok", "child rejected", "child cancelled"}
    wanted |= {"attempt ok", "attempt failed", "attempt cancelled", "attempt ignored", "aos.patterns"}
    ends: Counter[str] = Counter()
    for seed in range(2, 8):  # rare things are rare: as many worlds as it takes, within reason
        world = scene(seed, 60)
        world.play()
        log = world.simulation.world
        ends.update(row["status"] for row in results(log))
        ends.update(f"round {row['round']}" for row in results(log))
        ends.update("repeated" for row in results(log) if row["repeated"])
        ends.update(f"attempt {row['status']}" for row in log.rows("aos.trails") if row["kind"] != "request")
        ends.update(row["kind"] for row in log.rows("aos.ledger"))
        handed_out = children(log)
        ends.update(f"child {row['status']}" for row in results(log) if row["request_id"] in handed_out)
        ends.update(topic for topic in log.topics() if topic in ("aos.patterns", "aos.strategies"))
        if wanted <= set(ends):
            return
    raise AssertionError(f"never seen: {wanted - set(ends)}")


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    logs = []
    for seed in (5, 5, 6):
        world = scene(seed, 8)
        world.play()
        log = world.simulation.world
        logs.append({topic: [e.rows for e in log.entries(topic)] for topic in log.topics()})
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_a_processor_that_forgets_is_caught() -> None:
    """The invariants can fail: releases that are never written leave slots taken."""
    world = scene(3, 10, chances=CALM, habits=GOOD)
    append = world.simulation.world.append
    lost = Random(3)

    def forgetful(output: Output) -> None:
        if output.topic != "aos.releases" or lost.random() < 0.8:
            append(output)

    world.simulation.world.append = forgetful  # type: ignore[method-assign]
    world.play()
    with pytest.raises(AssertionError) as caught:
        check(world)
    assert "seed 3" in "".join(caught.value.__notes__)


def test_a_message_that_does_not_fit_its_record_is_caught() -> None:
    world = scene(1, 1).simulation.world
    rows = scene(1, 1).simulation.loop("supervise", 0).processor.tick
    assert rows is not None
    with pytest.raises(AssertionError, match="columns"):
        world.append(replace(Output("aos.tasks", rows(0, 1), 0)))
