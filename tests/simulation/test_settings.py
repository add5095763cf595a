"""Settings that change while everything dies: nothing is lost, and every fold is still what its log says."""

from __future__ import annotations

import pytest

from aos.streams.live import TOPIC
from tests.simulation.invariants import check
from tests.simulation.operators import Operators
from tests.simulation.scene import scene


@pytest.mark.parametrize("seed", range(1, 3))
def test_changes_of_settings_lose_nothing_and_folds_stay_what_their_logs_say(seed: int) -> None:
    """`check` folds the logs of supervise, learn and mine again without any change of a setting: byte-equal states."""
    world = scene(seed, 40)
    operators = Operators()
    world.simulation.actors += (operators,)
    world.play()
    check(world)
    assert operators.seen.version > 20
    assert not operators.seen.refused
    seen = [process.values[TOPIC] for process in world.simulation.processes if TOPIC in process.values]
    assert len(seen) >= 2
    assert {runtime.version for runtime in seen} == {operators.seen.version}
    assert all(runtime.values == operators.seen.values for runtime in seen)
    versions = {row["settings_version"] % 2**20 for row in world.simulation.world.rows("aos.decisions")}
    assert len(versions) > 5, "decisions were made under changing settings"
