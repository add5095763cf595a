"""The order in which waiting rows may start, and when a lane is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents import lanes as lanes_module
from aos.agents.lanes import Lanes, Verdict, Waiting

AGE = 20_000_000
Row = Waiting[None]


def row(
    number: int,
    lane: int = 2,
    tenant: str = "t",
    *,
    running: bool = False,
    ready_at: int = 0,
    wants: str = "",
) -> Row:
    return Waiting(b"%d" % number, lane, tenant, running, ready_at, None, number, wants)


def any_may(_: Row) -> bool:
    return True


def take_some(
    lanes: Lanes[None], count: int, now: int = 0, weights: dict[str, float] | None = None
) -> list[Row]:
    """The rows that start when `count` slots are free and any row may have any of them."""
    taken: list[Row] = []

    def take(offered: Row) -> Verdict:
        if len(taken) == count:
            return Verdict.FULL
        taken.append(offered)
        return Verdict.TAKEN

    lanes.offer(now, AGE, weights or {}, any_may, take)
    return taken


def filled(*rows: Row) -> Lanes[None]:
    lanes: Lanes[None] = Lanes()
    for item in rows:
        lanes.add(item)
    return lanes


def test_a_row_of_lane_0_is_the_next_after_a_thousand_waiting_in_lane_3() -> None:
    lanes = filled(*(row(i, lane=3, ready_at=i) for i in range(1000)))
    assert [item.lane for item in take_some(lanes, 3, now=1000)] == [3, 3, 3]
    lanes.add(row(5000, lane=0, ready_at=2000))
    assert [item.lane for item in take_some(lanes, 2, now=2000)] == [0, 3]


def test_steps_of_running_workflows_go_before_new_ones_of_their_lane_but_not_before_a_better_lane() -> None:
    lanes = filled(
        row(1, lane=2, ready_at=0), row(2, lane=2, running=True, ready_at=5), row(3, lane=1, ready_at=9)
    )
    assert [item.index for item in take_some(lanes, 3, now=10)] == [3, 2, 1]


def test_the_older_of_equal_rows_goes_first() -> None:
    lanes = filled(*(row(i, ready_at=i) for i in range(5)))
    assert [item.index for item in take_some(lanes, 5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("lane", [1, 2, 3])
def test_a_row_starts_no_later_than_one_of_lane_0_that_comes_its_lane_times_the_age_after_it(
    lane: int, rate: int
) -> None:
    # one slot a step; `rate` 1: lane 0 alone would keep it busy, 2: its backlog grows for ever
    lanes = filled(row(0, lane=lane, ready_at=0))
    step = AGE // 10
    for moment in range(100):
        for i in range(rate):
            lanes.add(row(1 + moment * rate + i, lane=0, ready_at=moment * step))
        (started,) = take_some(lanes, 1, moment * step)
        if started.index == 0:
            assert moment <= lane * 10 * rate + 1
            return
        assert started.ready_at <= lane * AGE
    raise AssertionError("it starved")


@pytest.mark.parametrize("lane", [0, 2])
def test_tenants_share_by_weight_within_10_percent_over_1000_rows(lane: int) -> None:
    lanes: Lanes[None] = Lanes()
    number = 0
    for tenant in ("a", "b", "c"):
        for _ in range(1000):
            number += 1
            lanes.add(row(number, lane, tenant))
    taken: Counter[str] = Counter()
    for _ in range(100):  # ten slots at a time
        taken.update(item.tenant for item in take_some(lanes, 10, weights={"a": 1, "b": 2, "c": 7}))
    for tenant, share in (("a", 0.1), ("b", 0.2), ("c", 0.7)):
        assert abs(taken[tenant] / 1000 - share) <= 0.1 * share


def test_a_tenant_that_comes_back_gets_no_credit_for_its_absence() -> None:
    lanes = filled(*(row(i, tenant="busy") for i in range(1000)))
    take_some(lanes, 500)
    for i in range(1000, 1400):
        lanes.add(row(i, tenant="back"))
    taken = Counter(item.tenant for item in take_some(lanes, 400))
    assert abs(taken["back"] - 200) <= 1


def test_a_flood_of_one_tenant_does_not_hold_up_another() -> None:
    lanes = filled(*(row(i, tenant="flood") for i in range(1000)), row(5000, tenant="small"))
    assert "small" in [item.tenant for item in take_some(lanes, 2)]


def test_a_row_without_a_free_slot_does_not_hold_up_those_behind_it_that_want_something_else() -> None:
    lanes = filled(*(row(i, ready_at=i, wants="even" if i % 2 == 0 else "odd") for i in range(10)))
    offered: list[int] = []

    def only_odd(one: Row) -> Verdict:
        offered.append(one.index)
        return Verdict.BLOCKED if one.wants == "even" else Verdict.TAKEN

    lanes.offer(0, AGE, {}, any_may, only_odd)
    assert offered == [0, 1, 3, 5, 7, 9]
    assert [item.index for item in lanes.rows.values()] == [0, 2, 4, 6, 8]


def test_what_a_pass_looks_at_does_not_grow_with_the_rows_that_wait_for_the_same() -> None:
    lanes = filled(*(row(i, lane=i % 4, tenant="ab"[i % 2], wants="xyz"[i % 3]) for i in range(4000)))
    asked: list[int] = []

    def none(one: Row) -> bool:
        asked.append(one.index)
        return False

    def never(_: Row) -> Verdict:
        raise AssertionError("nobody may")

    lanes.offer(0, AGE, {}, none, never)
    assert len(asked) == 4 * 3  # lane (and with it the tenant) and wants
    assert len(lanes.rows) == 4000


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.sampled_from("xyz")), max_size=40))
def test_what_rows_want_does_not_change_the_order_when_everything_is_free(
    rows: list[tuple[str, bool, str]],
) -> None:
    alike = filled(*(row(i, 2, who, running=runs, ready_at=i) for i, (who, runs, _) in enumerate(rows)))
    several = filled(
        *(row(i, 2, who, running=runs, ready_at=i, wants=what) for i, (who, runs, what) in enumerate(rows))
    )
    order = [item.index for item in take_some(several, 100)]
    assert order == [item.index for item in take_some(alike, 100)]


def test_a_lane_is_full_from_its_limit_until_half_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "ROWS_MAX", 64)
    lanes = filled(*(row(i) for i in range(63)))
    assert lanes.full() == []
    lanes.add(row(63))
    assert lanes.full() == [2]
    take_some(lanes, 31)
    assert lanes.full() == [2]
    take_some(lanes, 1)
    assert lanes.full() == []


def test_a_dropped_row_never_starts() -> None:
    lanes = filled(row(1), row(2))
    dropped = lanes.drop(b"1")
    assert dropped is not None
    assert lanes.drop(b"1") is None
    assert [item.index for item in take_some(lanes, 5)] == [2]
    assert lanes.lanes[2].count == 0


events = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from("abc"), st.booleans(), st.integers(0, 100), st.integers(0, 4)
    ),
    max_size=60,
)


@given(events)
def test_every_row_starts_exactly_once_whatever_the_splits(
    rows: list[tuple[int, str, bool, int, int]],
) -> None:
    lanes: Lanes[None] = Lanes()
    started: list[int] = []
    for number, (lane, tenant, running, ready_at, count) in enumerate(rows):
        lanes.add(row(number, lane, tenant, running=running, ready_at=ready_at * AGE // 20))
        started += [item.index for item in take_some(lanes, count, now=5 * AGE)]
        assert sum(item.count for item in lanes.lanes) == len(lanes.rows)
    started += [item.index for item in take_some(lanes, 10**6)]
    assert sorted(started) == list(range(len(rows)))
    assert not any(item.queues for item in lanes.lanes)


def test_a_tenant_of_weight_0_gets_little_but_not_nothing() -> None:
    lanes = filled(row(1, tenant="none"), *(row(i, tenant="some") for i in range(2, 2000)))
    take: Callable[[int], list[Row]] = lambda n: take_some(lanes, n, weights={"none": 0.0})  # noqa: E731
    assert "none" in [item.tenant for item in take(1500)]
