"""Posteriors: sufficient statistics that add, fade and take back; four levels that lend each other strength."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.analytics import posterior
from aos.analytics.beliefs import TERMS
from aos.analytics.posterior import Cells, Solved, Strengths, solve

STRENGTHS = Strengths.of(8.0)


def terms(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack((np.ones(count), rng.random((count, TERMS - 1))))


def taught(
    lessons: list[tuple[str, str, float]], discount: float = 1.0, z: np.ndarray | None = None, split: int = 0
) -> Cells:
    """Cells that were taught (kind, agent, score) in one or two batches."""
    cells = Cells()
    z = terms(len(lessons)) if z is None else z
    for part in (slice(0, split), slice(split, None)):
        some = lessons[part]
        if some:
            rows = cells.place([("d", kind, agent) for kind, agent, _ in some])
            scores = np.array([score for _, _, score in some])
            cells.teach(rows, z[part], scores, np.zeros((len(some), 3)), discount)
    return cells


def means(solved: Solved, kind: str) -> dict[str, float]:
    """Expected score of each agent with a cell of the kind, on the average task."""
    at = solved.kinds.index(kind)
    mine = np.flatnonzero(solved.cell_kind == at)
    return {solved.agents[solved.cell_agent[row]]: float(solved.cell[row, 0]) for row in mine}


LESSONS = st.lists(
    st.tuples(st.sampled_from("jk"), st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=1,
    max_size=40,
)


@given(LESSONS, st.integers(0, 40), st.sampled_from([1.0, 0.9]))
def test_any_split_teaches_the_same(
    lessons: list[tuple[str, str, float]], split: int, discount: float
) -> None:
    whole, parts = taught(lessons, discount), taught(lessons, discount, split=min(split, len(lessons)))
    assert whole.keys == parts.keys
    for name in posterior.ARRAYS:
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-12, atol=1e-12)


@given(LESSONS)
def test_statistics_are_what_they_say(lessons: list[tuple[str, str, float]]) -> None:
    z = terms(len(lessons))
    cells = taught(lessons, 0.9, z)
    for row, (_, kind, agent) in enumerate(cells.keys):
        mine = [at for at, lesson in enumerate(lessons) if lesson[:2] == (kind, agent)]
        weights = 0.9 ** np.arange(len(mine) - 1, -1, -1.0)
        y = np.array([lessons[at][2] for at in mine])
        np.testing.assert_allclose(cells.grams[row], (z[mine].T * weights) @ z[mine])
        np.testing.assert_allclose(cells.moments[row], (weights * y) @ z[mine])
        np.testing.assert_allclose(cells.squares[row], weights @ y**2)
        assert (cells.grams[row] == cells.grams[row].T).all()


@given(LESSONS, st.integers(0, 39), st.floats(0, 1))
def test_a_corrected_lesson_is_as_if_taught_so(
    lessons: list[tuple[str, str, float]], at: int, new: float
) -> None:
    at %= len(lessons)
    z = terms(len(lessons))
    kind, agent, old = lessons[at]
    cells = taught(lessons, 0.95, z)
    number = sum(1 for lesson in lessons[: at + 1] if lesson[:2] == (kind, agent))
    cells.correct(cells.rows["d", kind, agent], number, z[at], old, new, 0.95)
    other = taught([*lessons[:at], (kind, agent, new), *lessons[at + 1 :]], 0.95, z)
    np.testing.assert_allclose(cells.moments, other.moments, atol=1e-12)
    np.testing.assert_allclose(cells.squares, other.squares, atol=1e-12)


def test_a_reset_cell_is_as_if_it_had_only_seen_its_newest() -> None:
    lessons = [("k", "a", 1.0)] * 20 + [("k", "a", 0.0)] * 6
    z = terms(26)
    cells = taught(lessons, 0.95, z)
    cells.reset(0, z[-6:], np.zeros(6), 0.95)
    other = taught(lessons[-6:], 0.95, z[-6:])
    np.testing.assert_allclose(cells.grams[0], other.grams[0])
    np.testing.assert_allclose(cells.moments[0], other.moments[0])
    assert cells.lessons[0] == 26  # numbers go on, for corrections


def test_many_outcomes_are_believed_and_few_are_held_by_the_prior() -> None:
    solved = solve(
        taught([("k", "a", 1.0)] * 400 + [("k", "b", 1.0)] * 2 + [("k", "c", 0.0)] * 400),
        "d",
        STRENGTHS,
        None,
    )
    found = means(solved, "k")
    assert found["a"] > 0.95
    assert found["c"] < 0.05
    assert found["c"] + 0.3 < found["b"] < found["a"]


def test_an_agent_is_expected_to_do_on_a_new_kind_as_it_did_elsewhere() -> None:
    lessons = [(kind, agent, score) for kind in "jk" for agent, score in (("a", 0.9), ("b", 0.3))] * 60
    solved = solve(
        taught([*lessons, ("new", "c", 0.6), ("new", "a", 0.6), ("new", "b", 0.6)]), "d", STRENGTHS, None
    )
    found = means(solved, "new")
    assert found["a"] > found["c"] > found["b"]


def test_hard_work_does_not_count_against_who_does_it() -> None:
    easy = [("easy", agent, 0.9) for agent in "ab"] * 80
    hard = [("hard", agent, 0.2) for agent in "ac"] * 80
    solved = solve(taught(easy + hard), "d", STRENGTHS, None)
    assert means(solved, "easy")["a"] == pytest.approx(means(solved, "easy")["b"], abs=0.03)
    assert means(solved, "hard")["a"] == pytest.approx(means(solved, "hard")["c"], abs=0.03)


def test_features_decide_between_agents() -> None:
    rng = np.random.default_rng(5)
    z = terms(600, 5)
    lessons = []
    for at in range(600):
        agent = "ab"[at % 2]
        chance = z[at, 3] if agent == "a" else 1 - z[at, 3]
        lessons.append(("k", agent, float(rng.random() < chance)))
    solved = solve(taught(lessons, z=z), "d", STRENGTHS, None)
    a, b = (solved.cell[solved.agents.index(agent)] for agent in "ab")
    assert a[3] > 0.1 > -0.1 > b[3]
    others = np.delete(np.arange(1, TERMS), 2)
    assert np.abs(a[others]).max() < a[3] / 2


def test_more_outcomes_are_more_certain_and_the_unknown_least() -> None:
    solved = solve(
        taught([("k", "a", 1.0), ("k", "a", 0.0)] * 50 + [("k", "b", 1.0), ("k", "b", 0.0)] * 3),
        "d",
        STRENGTHS,
        None,
    )
    a, b = (solved.cell_variance[solved.agents.index(agent), 0] for agent in "ab")
    assert 0 < a < b < solved.any_variance[0] <= 0.29**2


def test_deviations_are_calibrated_on_what_the_prior_describes() -> None:
    """Agents' skills drawn as the prior says: the true ones lie within two deviations about 95 times in 100."""
    rng = np.random.default_rng(11)
    inside = total = 0
    for _ in range(20):
        skill = {agent: rng.normal(0.5, 0.13) for agent in "abcdefgh"}
        names = [str(name) for name in rng.choice(list(skill), 160)]
        lessons = [("k", name, float(rng.random() < np.clip(skill[name], 0, 1))) for name in names]
        solved = solve(
            taught(lessons, z=np.column_stack((np.ones(160), np.zeros((160, TERMS - 1))))),
            "d",
            STRENGTHS,
            None,
        )
        for row, agent in enumerate(solved.cell_agent):
            gap = abs(solved.cell[row, 0] - skill[solved.agents[agent]])
            inside += gap < 2 * solved.cell_variance[row, 0] ** 0.5
            total += 1
    assert 0.88 <= inside / total <= 1.0


def test_the_prior_of_the_top_level_is_rivers() -> None:
    prior = np.zeros(TERMS)
    prior[0] = 0.9
    cells = taught([("k", "a", 0.5)])
    assert solve(cells, "d", STRENGTHS, prior).top[0] > solve(cells, "d", STRENGTHS, None).top[0] + 0.1


def test_scaling_a_feature_changes_no_prediction() -> None:
    lessons = [("k", agent, score) for agent, score in (("a", 1.0), ("b", 0.0), ("a", 0.5))] * 40
    z = terms(len(lessons))
    far = z.copy()
    far[:, 4] = 1000 + 50 * z[:, 4]
    one, other = (
        solve(taught(lessons, z=z), "d", STRENGTHS, None),
        solve(taught(lessons, z=far), "d", STRENGTHS, None),
    )
    for solved, places in ((one, z), (other, far)):
        scaled = (places[:, 1:] - solved.means) / solved.scales
        told = solved.cell[:, 0] + scaled @ solved.cell[:, 1:].T
        if solved is one:
            expected = told
    np.testing.assert_allclose(told, expected, atol=0.02)


def test_scaled_grams_are_the_affine_product() -> None:
    raw = taught([("k", "a", 1.0)] * 30 + [("j", "b", 0.0)] * 9).grams[:2]
    means_, scales = posterior._moments(raw.sum(0))
    affine = posterior._affine(means_, scales)
    np.testing.assert_allclose(posterior._scaled(raw, means_, scales), affine @ raw @ affine.T, atol=1e-9)


def test_full_cells_forget_who_was_taught_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "CELLS_MAX", 10)
    cells = Cells()
    rows = cells.place([("d", "k", f"a{n}") for n in range(12)])
    cells.touched[rows] = np.arange(12)
    cells.lessons[rows] = np.arange(12)
    moved = cells.evict()
    assert moved is not None
    assert moved.tolist() == [-1] * 3 + list(range(9))
    assert cells.lessons[:9].tolist() == list(range(3, 12))
    assert cells.rows["d", "k", "a3"] == 0
    assert cells.evict() is None


def test_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "KINDS_MAX", 2)
    cells = taught([("j", "a", 1.0), ("k", "a", 1.0)])
    assert [cells.kind("d", kind) for kind in ("j", "k", "l", None, "")] == ["j", "k", "", "", ""]
