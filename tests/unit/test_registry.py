"""The registry's own bounds: what it costs to hear much, and what it keeps."""

from __future__ import annotations

from aos.agents.registry import BLOCK_AGENTS_MAX, PACE_US, Limits, Registry, load
from aos.agents.registry_state import dump

LIMITS = Limits(4_000_000, 12_000_000)
TOLD = {
    "capabilities": ("work",),
    "description": None,
    "cell": "default",
    "capacity": 1,
    "price": 0,
    "timeout": 0,
    "tenants": None,
    "fallback": False,
}


def _crew(count: int) -> Registry:
    registry = Registry()
    for number in range(count):
        registry.register(f"agent-{number}", 1, LIMITS, False, service="crew", **TOLD)
    return registry


def test_blocks_hold_at_most_a_thousand_agents_and_freed_places_are_filled_first() -> None:
    registry = _crew(2 * BLOCK_AGENTS_MAX + 1)
    blocks = registry.services["crew"].blocks
    assert [len(block.names) for block in blocks.values()] == [BLOCK_AGENTS_MAX, BLOCK_AGENTS_MAX, 1]
    registry.remove("agent-7")
    registry.register("late", 2, LIMITS, False, service="crew", **TOLD)
    assert registry.agents["late"].block == 0


def test_time_is_looked_at_only_when_something_can_end() -> None:
    registry = _crew(3)
    registry.beat("crew", "one", None, False, 0, 1_000_000, LIMITS)
    registry.watch(1_000_000, LIMITS)
    assert registry.check_at == 5_000_000
    due = registry.due(LIMITS)
    assert due is not None
    assert due <= 2_000_000


def test_nothing_is_due_without_agents_and_only_forgetting_when_all_are_gone() -> None:
    assert Registry().due(LIMITS) is None
    registry = _crew(1)
    now = 1
    for _ in range(30):
        now += 1_000_000
        registry.watch(now, LIMITS)
        registry.publish(now, 1, lambda names: [0.0] * len(names), 5)
    due = registry.due(LIMITS)
    assert due is not None
    assert due > 24 * 3600 * 1_000_000
    registry.watch(due, LIMITS)
    assert registry.agents == {}
    assert registry.publish(due, 1, lambda names: [0.0] * len(names), 5) is not None
    registry.watch(due + 1, LIMITS)
    assert registry.due(LIMITS) is None


def test_a_service_that_is_gone_leaves_nothing_behind() -> None:
    registry = _crew(1)
    registry.beat("crew", "one", None, False, 0, 1, LIMITS)
    registry.beat("stranger", "one", ["nobody"], False, 0, 1, LIMITS)
    registry.remove("agent-0")
    now = 1
    for _ in range(40):
        now += 500_000
        registry.watch(now, LIMITS)
        registry.publish(now, 1, lambda names: [0.0] * len(names), 5)
    assert registry.services == {}
    assert registry.agents == {}


def test_an_emptied_block_is_told_once_and_empty() -> None:
    registry = _crew(1)
    first = registry.publish(1_000_000, 1, lambda names: [0.0] * len(names), 5)
    registry.remove("agent-0")
    second = registry.publish(2_000_000, 1, lambda names: [0.0] * len(names), 5)
    third = registry.publish(60_000_000, 1, lambda names: [0.0] * len(names), 5)
    assert first is not None
    assert len(first[1]) == 1
    assert second is not None
    assert (second[0], len(second[1])) == (b"crew/0", 0)
    assert third is None


def test_the_dump_is_sorted_whatever_the_order_of_registration() -> None:
    forth, back = Registry(), Registry()
    names = [f"agent-{number}" for number in range(5)]
    for registry, order in ((forth, names), (back, names[::-1])):
        for name in order:
            registry.register(name, 1, LIMITS, False, service=f"of-{name}", **TOLD)
    assert dump(forth)["agents"].equals(dump(back)["agents"])
    assert dump(forth)["services"].equals(dump(back)["services"])


def test_a_call_that_comes_too_early_publishes_nothing() -> None:
    registry = Registry()
    for service in ("crew", "other"):
        registry.register(f"of-{service}", 1, LIMITS, False, service=service, **TOLD)
    found = [
        registry.publish(now, 1, lambda names: [0.0] * len(names), 5) is not None
        for now in (1_000_000, 1_000_001, 1_000_000 + PACE_US - 1, 1_000_000 + PACE_US)
    ]
    assert found == [True, False, False, True]


def test_blocks_wait_in_the_order_of_their_numbers_not_of_their_making() -> None:
    registry = _crew(BLOCK_AGENTS_MAX + 1)
    for number in range(BLOCK_AGENTS_MAX):
        registry.remove(f"agent-{number}")
    for now in (1_000_000, 2_000_000):
        registry.publish(now, 1, lambda names: [0.0] * len(names), 5)
    registry.register("late", 2_000_000, LIMITS, False, service="crew", **TOLD)
    registry.publish(3_000_000, 1, lambda names: [0.0] * len(names), 5)
    assert list(registry.services["crew"].blocks) == [1, 0]
    restored = load(dump(registry))
    for one in (registry, restored):
        one.beat("crew", "one", None, False, 0, 3_000_000, LIMITS)
    assert restored == registry
