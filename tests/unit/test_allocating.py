"""The choice: chances, arms, draws, spreading."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents.allocating import (
    Draws,
    Rotation,
    arms,
    better_to_wait,
    chances,
    charge,
    choose,
    drawn_of,
    turn_of,
    with_floor,
)
from aos.agents.load import Slot


def slot(agent: str, limit: int = 4, load: int = 0) -> Slot:
    return Slot(agent, limit, load)


def hold(item: Slot, more: int) -> None:
    item.set(item.limit, item.load + more)


def never(free: object) -> list[float]:
    raise AssertionError("enough chance is left")


def fine_chances(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The same by another way: 200,000 draws of the scores, those outside 0..1 drawn again."""
    random = np.random.default_rng(5)
    scores = np.full((200_000, len(mean)), -1.0)
    for i in range(len(mean)):
        open_ = np.arange(len(scores))
        while len(open_):
            scores[open_, i] = random.normal(mean[i], deviation[i], len(open_))
            open_ = open_[(scores[open_, i] < 0) | (scores[open_, i] > 1)]
    return np.bincount(scores.argmax(axis=1), minlength=len(mean)) / len(scores)


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [
        ([0.5, 0.5], [0.1, 0.1]),
        ([0.9, 0.5], [0.001, 0.4]),
        ([0.6, 0.6, 0.6], [0.001, 0.1, 0.3]),
        ([0.95, 0.9, 0.2, 0.2], [0.05, 0.2, 0.5, 0.5]),
        ([0.50, 0.52, 0.54, 0.56, 0.58, 0.60, 0.62, 0.64], [0.05] * 8),
        ([0.7] * 16, [0.02] * 16),
        ([1.0, 1.0, 0.0], [0.3, 0.01, 0.3]),
    ],
)
def test_chances_are_those_of_drawn_scores_within_a_point(mean: list[float], deviation: list[float]) -> None:
    m, s = np.array(mean), np.array(deviation)
    found = chances(m[None], s[None], np.ones((1, len(m)), bool))[0]
    assert np.abs(found - fine_chances(m, s)).max() < 0.01
    assert found.sum() == pytest.approx(1)


def test_chances_do_not_depend_on_the_other_rows_or_on_padding() -> None:
    random = np.random.default_rng(1)
    mean, deviation = random.random((700, 6)), random.random((700, 6)) * 0.3
    present = np.arange(6) < random.integers(1, 7, 700)[:, None]
    together = chances(mean, deviation, present)
    assert together[~present].max() == 0
    for row in (0, 1, 350, 699):
        count = present[row].sum()
        one = np.ones((1, count), bool)
        alone = chances(mean[row : row + 1, :count], deviation[row : row + 1, :count], one)[0]
        assert np.abs(together[row, :count] - alone).max() < 0.01


def test_chances_of_no_alternatives_are_none() -> None:
    nothing = np.zeros((2, 0))
    assert chances(nothing, nothing, nothing > 0).shape == (2, 0)
    assert chances(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3), bool)).sum() == 0


def test_each_agent_on_trial_keeps_the_floor_and_the_chances_sum_to_one() -> None:
    chance = np.array([[0.999, 0.001, 0.0], [0.5, 0.5, 0.0]])
    trial = np.array([[False, True, True], [True, True, True]])
    found = with_floor(chance, trial, np.ones((2, 3), bool), np.array([0.02, 0.5]))
    assert found[0, 1:].min() >= 0.02
    assert found[1] == pytest.approx([1 / 3] * 3)  # never more than an equal share
    assert found.sum(axis=1) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("mean", "deviation", "together"),
    [
        ([0.800, 0.8005], [0.001, 0.001], True),  # a difference nobody would notice
        ([0.80, 0.805], [0.10, 0.10], True),  # small beside what is not known
        ([0.80, 0.82], [0.01, 0.01], False),  # two deviations apart
        ([0.80, 0.805], [0.01, 0.01], False),  # half a deviation is already a difference
        ([0.80, 0.80], [0.05, 0.20], False),  # the less known one is worth exploring
        ([0.80, 0.80], [0.0, 0.0], True),
    ],
)
def test_alternatives_are_merged_only_if_they_cannot_be_told_apart(
    mean: list[float], deviation: list[float], together: bool
) -> None:
    found = arms(np.array([mean]), np.array([deviation]), np.ones((1, 2), bool))[0]
    assert (found[0] == found[1]) == together


def test_an_arm_has_one_leader_and_padding_has_no_arm() -> None:
    mean = np.array([[0.5, 0.9, 0.5004, 0.0]])
    present = np.array([[True, True, True, False]])
    assert arms(mean, np.full((1, 4), 1e-3), present).tolist() == [[2, 1, 2, -1]]


def test_the_same_attempt_and_salt_draw_the_same_number_and_others_spread_evenly() -> None:
    draws = Draws(7)
    values = [draws.of(b"%22d" % i) for i in range(20_000)]
    assert values[:5] == [Draws(7).of(b"%22d" % i) for i in range(5)]
    assert values[0] != Draws(8).of(b"%22d" % 0)
    assert all(np.float32(value) == value for value in values[:100])
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert counts.min() > 850
    assert counts.max() < 1150


def test_an_agent_is_chosen_as_often_as_its_logged_probability_says() -> None:
    slots = [slot("a"), slot("b"), slot("c")]
    chance = [0.6, 0.3, 0.1]
    seen: Counter[int] = Counter()
    probability: dict[int, float] = {}
    for salt in range(10_000):
        choice = choose(slots, chance, [0, 1, 2], Draws(salt).of(b"x" * 22), never)
        assert choice is not None
        seen[choice.position] += 1
        probability[choice.position] = choice.probability
    for position, logged in probability.items():
        assert abs(seen[position] / 10_000 - logged) < 0.02


@given(st.lists(st.tuples(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5]), max_size=5), st.floats(0, 0.999))))
def test_what_is_drawn_of_many_rows_at_once_is_what_each_would_choose_alone(
    rows: list[tuple[list[float], float]],
) -> None:
    width = max((len(means) for means, _ in rows), default=0)
    present = np.array([[i < len(means) for i in range(width)] for means, _ in rows], bool)
    present = present.reshape(len(rows), width)
    mean = np.zeros(present.shape)
    mean[present] = [value for means, _ in rows for value in means]
    deviation = np.where(present, 0.05, 0.0)
    chance, arm = chances(mean, deviation, present), arms(mean, deviation, present)
    found = drawn_of(chance, arm, present, np.array([u for _, u in rows]))
    for row, (drawn, (means, u)) in enumerate(zip(found, rows, strict=True)):
        slots = [slot(f"a{i}") for i in range(len(means))]
        alone = choose(slots, chance[row].tolist(), arm[row, : len(means)].tolist(), u, never)
        if alone is None:
            assert not means
            continue
        equals = slots if drawn.members is None else [slots[i] for i in drawn.members]
        next_ = turn_of(equals, [0.0] * len(equals), 0.0)
        assert (alone.position, alone.probability) == (slots.index(next_), drawn.probability)
        assert drawn.position in (drawn.members or range(len(means)))


def test_a_full_agent_is_never_chosen_and_the_rest_share_its_chance() -> None:
    slots = [slot("a", load=4), slot("b"), slot("c")]
    found: dict[int, Any] = {}
    for u in np.arange(0, 1, 0.001):
        choice = choose(slots, [0.6, 0.3, 0.1], [0, 1, 2], float(u), never)
        assert choice is not None
        found[choice.position] = (choice.probability, choice.overridden)
    assert found == {1: (pytest.approx(0.75), True), 2: (pytest.approx(0.25), True)}


def test_nobody_free_is_no_choice() -> None:
    assert choose([slot("a", load=4)], [1.0], [0], 0.5, never) is None


def test_when_hardly_any_chance_is_left_the_free_ones_are_compared_anew() -> None:
    slots = [slot("a", load=4), slot("b"), slot("c")]
    choice = choose(slots, [1.0, 0.0, 0.0], [0, 1, 2], 0.95, lambda free: [0.0, 0.9, 0.1])
    assert choice is not None
    assert (choice.position, round(choice.probability, 6), choice.overridden) == (2, 0.1, True)


def test_a_row_waits_for_a_better_agents_slot_rather_than_go_to_one_that_hardly_ever_succeeds() -> None:
    full, gone = slot("good", load=4), Slot("good", 0, 0)
    assert better_to_wait([full, slot("liar")], [0.9, 0.0], [0.95, 0.05])
    assert not better_to_wait(
        [full, slot("worse")], [0.9, 0.3], [0.95, 0.35]
    )  # overflow to a weaker one is right
    assert not better_to_wait(
        [full, slot("new")], [0.9, 0.1], [0.95, 0.4]
    )  # what is not known yet may be tried
    assert not better_to_wait([gone, slot("liar")], [0.9, 0.0], [0.95, 0.05])  # the better one will not come
    assert not better_to_wait([full, slot("a"), slot("liar")], [0.9, 0.8, 0.0], [0.95, 0.85, 0.05])
    assert not better_to_wait([slot("a", load=4), slot("b")], [0.0, 0.0], [0.0, 0.0])  # nobody is better


def test_an_equal_of_the_best_with_a_free_slot_is_no_override() -> None:
    choice = choose([slot("a", load=4), slot("b")], [0.5, 0.5], [0, 0], 0.3, never)
    assert choice is not None
    assert (choice.position, choice.overridden, choice.probability) == (1, False, 1.0)


def test_the_probability_of_a_choice_among_equals_is_that_of_their_arm() -> None:
    slots = [slot("a"), slot("b"), slot("c")]
    choice = choose(slots, [0.4, 0.4, 0.2], [0, 0, 2], 0.1, never)
    assert choice is not None
    assert choice.probability == pytest.approx(0.8)


@pytest.mark.parametrize("limits", [[4] * 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
@pytest.mark.parametrize("in_flight", [1, 7, 20])
def test_equal_agents_get_work_in_proportion_to_their_capacity_within_5_percent(
    limits: list[int], in_flight: int
) -> None:
    random = np.random.default_rng(3)
    slots = [slot(f"a{i}", limit) for i, limit in enumerate(limits)]
    count, running = np.zeros(10), []
    for turn in range(1, 1_001):
        choice = choose(slots, [0.1] * 10, [0] * 10, random.random(), never)
        assert choice is not None
        charge(slots[choice.position], max(item.served for item in slots), turn)
        hold(slots[choice.position], 1)
        count[choice.position] += 1
        running.append(choice.position)
        if len(running) >= in_flight:
            hold(slots[running.pop(random.integers(len(running)))], -1)
    share = count / np.array(limits)
    assert (share.max() - share.mean()) / share.mean() < 0.05


def test_an_equal_agent_that_was_away_does_not_get_all_the_work() -> None:
    slots = [slot("a", 100), slot("b", 100)]
    for turn in range(1, 10_001):
        charge(slots[0], slots[0].served, turn)
    taken = 0
    for turn in range(10_001, 12_001):
        choice = choose(slots, [0.5, 0.5], [0, 0], 0.5, never)
        assert choice is not None
        charge(slots[choice.position], max(item.served for item in slots), turn)
        taken += choice.position
    assert 1000 <= taken <= 1250


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=40)
)
def test_the_rotation_gives_everybody_who_is_always_free_an_equal_share(
    loads: list[int], subjects: list[int]
) -> None:
    rotation = Rotation()
    slots = [slot(f"a{i}", 2, load) for i, load in enumerate(loads)]
    free = [item.agent for item in slots if item.load < 2]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for number in subjects:
        subject = ("d", str(number))
        choice = rotation.choose(subject, slots)
        if not free:
            assert choice is None
            continue
        assert choice is not None
        agent = slots[choice.position].agent
        assert agent in free
        assert choice.probability == pytest.approx(1 / len(free))
        rotation.took(subject, agent)
        counts.setdefault(subject, Counter())[agent] += 1
    for counter in counts.values():
        values = [counter[agent] for agent in free]
        assert max(values) - min(values) <= 1


def test_the_rotation_says_when_the_next_one_had_no_slot() -> None:
    rotation = Rotation()
    rotation.took(("d", ""), "a")
    choice = rotation.choose(("d", ""), [slot("a"), slot("b", load=4), slot("c")])
    assert choice is not None
    assert (choice.position, choice.overridden) == (2, True)
