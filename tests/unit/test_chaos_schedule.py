"""The chaos room's schedule and table: the same seed gives the same run, and no fault is missing from the table."""

from __future__ import annotations

import pytest

from tests.chaos import faults, report
from tests.chaos.schedule import KILLS, PAUSE_S, WARM_S, schedule

RECORDED = [(2, 2.514, 3892231248), (3, 1.063, 2133404987), (1, 0.364, 3403299979)]


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    numbers = list(range(1, 41))
    first = schedule(7, numbers)
    assert first == schedule(7, numbers)
    assert first != schedule(8, numbers)
    assert sorted(slot.number for slot in first) == numbers
    assert len({slot.seed for slot in first}) == len(numbers)


def test_the_schedule_of_a_seed_never_changes() -> None:
    """A report names its seed: years later it must be the same run."""
    slots = [(slot.number, slot.pause_s, slot.seed) for slot in schedule(1, [1, 2, 3])]
    assert slots == RECORDED


def test_pauses_stay_in_their_bounds() -> None:
    slots = schedule(3, [1, 2, 3], rounds=20)
    assert WARM_S[0] <= slots[0].pause_s <= WARM_S[1]
    assert all(PAUSE_S[0] <= slot.pause_s <= PAUSE_S[1] for slot in slots[1:])


def test_a_suite_of_kills_makes_at_least_twenty() -> None:
    slots = schedule(1, faults.of_suite("kill"), least_kills=KILLS)
    assert len(slots) >= KILLS
    assert {slot.number for slot in slots} == {1, 2, 3}


def test_there_are_forty_faults_each_in_a_suite_and_those_nobody_built_say_so() -> None:
    assert [row[0] for row in faults.MATRIX] == list(range(1, 41))
    assert sorted(faults.REGISTRY) == list(range(1, 41))
    assert {row[2] for row in faults.MATRIX} <= set(faults.SUITES)
    assert sorted(number for suite in faults.SUITES for number in faults.of_suite(suite)) == list(
        range(1, 41)
    )
    assert len(faults.of_suite("quick")) >= 12
    for fault in faults.load_all().values():
        assert (fault.inject is not faults.no_hands) or fault.missing()
    assert faults.REGISTRY[37].missing() == faults.GATEWAY
    with pytest.raises(ValueError, match="no suite"):
        faults.of_suite("nonsense")


def test_two_modules_cannot_build_the_same_fault() -> None:
    faults.load_all()
    with pytest.raises(ValueError, match="twice"):
        faults.inject_by(1, faults.no_hands)


def test_the_table_has_forty_rows_whatever_ran() -> None:
    said = {"recoveries": [{"number": 1, "seconds": 1.5}, {"number": 0, "seconds": 9.0}]}
    ran = [{"number": 1, "kills": 1, "failed": [("I10", "it hurt")]}]
    rows = report.rows(said, ran, {9: "no tmpfs here"})
    assert [row["number"] for row in rows] == list(range(1, 41))
    assert rows[0]["times"] == 1
    assert rows[0]["recovery_max_s"] == 1.5
    assert rows[0]["failed"] == ["it hurt"]
    assert rows[8]["not_run"] == "no tmpfs here"
    assert rows[1]["not_run"] == "not in this suite"
