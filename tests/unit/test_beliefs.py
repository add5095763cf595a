"""Beliefs: what is expected of agents on tasks, with much, little and nothing learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aos.analytics.beliefs import PRIOR_DEVIATION, PRIOR_SCORE, TERMS, Beliefs, centres_key, key_of
from aos.codecs import rows as codec

SURFACES = np.random.default_rng(0).random((3, 16)).astype(np.float32)
NOTHING = np.zeros((3, 256), np.float16)


def row(agent: str, weights: dict[int, float], kind: str = "k", **more: Any) -> dict[str, Any]:
    found = [0.0] * TERMS
    for place, value in weights.items():
        found[place] = value
    base = {
        "domain": "d", "task_kind": kind, "agent": agent, "count": 9.0, "score": found[0], "deviation": 0.1,
        "latency_us": 100.0, "cost_usd_micros": 10.0, "cpu_us": 1.0, "drift_count": 0, "weights": found,
        "variances": [0.01] * TERMS, "model_version": 5, "updated_at": 0,
    }  # fmt: skip
    if not agent:
        base |= {"means": [0.5] * 16, "scales": [0.5] * 16}
    return {**base, **more}


def told(*rows: dict[str, Any], view: Beliefs | None = None) -> Beliefs:
    view = view or Beliefs()
    return view.apply(key_of("d", rows[0]["task_kind"]), codec.from_dicts("belief", list(rows)))


def test_nothing_learned_is_the_prior() -> None:
    found = Beliefs().predict("d", "k", ["a", "b"], SURFACES, NOTHING)
    assert (found.score == np.float32(PRIOR_SCORE)).all()
    assert (found.deviation == np.float32(PRIOR_DEVIATION)).all()
    assert not found.similarity.any()
    assert not found.count.any()
    assert (found.score.shape, found.latency_us.shape) == ((3, 2), (2,))


@pytest.mark.parametrize(("tasks", "agents"), [(0, 2), (2, 0), (0, 0)])
def test_nobody_and_nothing_are_no_special_cases(tasks: int, agents: int) -> None:
    for view in (Beliefs(), told(row("", {0: 0.5}), row("a", {0: 0.9}))):
        found = view.predict("d", "k", ["a", "b"][:agents], SURFACES[:tasks], NOTHING[:tasks])
        assert found.score.shape == found.deviation.shape == found.similarity.shape == (tasks, agents)


def test_score_is_linear_in_scaled_features_and_clipped() -> None:
    view = told(row("", {0: 0.5}), row("a", {0: 0.6, 3: 0.2}), row("b", {0: 3.0}), row("c", {0: -1.0}))
    found = view.predict("d", "k", ["a", "b", "c"], SURFACES, NOTHING)
    np.testing.assert_allclose(found.score[:, 0], 0.6 + 0.2 * (SURFACES[:, 2] - 0.5) / 0.5, rtol=1e-5)
    assert (found.score[:, 1] == 1).all()
    assert (found.score[:, 2] == 0).all()
    scaled = (SURFACES - 0.5) / 0.5
    expected = np.minimum(
        np.sqrt(0.01 * (1 + (scaled**2).sum(1))), PRIOR_DEVIATION
    )  # never less than nothing is known
    np.testing.assert_allclose(found.deviation[:, 0], expected, rtol=1e-5)


def test_a_feature_far_out_cannot_decide_alone() -> None:
    view = told(row("", {0: 0.5}), row("a", {0: 0.5, 1: 0.01}))
    far = SURFACES.copy()
    far[:, 0] = 1e6
    assert (view.predict("d", "k", ["a"], far, NOTHING).score < 0.55).all()


def test_an_unknown_agent_is_as_any() -> None:
    view = told(row("", {0: 0.4}, latency_us=7.0), row("a", {0: 0.9}))
    found = view.predict("d", "k", ["a", "new"], SURFACES, NOTHING)
    np.testing.assert_allclose(found.score[:, 1], 0.4, rtol=1e-6)
    assert found.latency_us[1] == 7.0
    assert found.count.tolist() == [9.0, 0.0]


def test_who_is_unknown_on_a_kind_differs_as_elsewhere() -> None:
    view = told(row("", {0: 0.4}), row("a", {0: 0.9}))
    told(
        row("", {0: 0.5}, kind="", cost_usd_micros=20.0),
        row("b", {0: 0.7}, kind="", cost_usd_micros=50.0),
        view=view,
    )
    found = view.predict("d", "k", ["b", "new"], SURFACES, NOTHING)
    np.testing.assert_allclose(found.score[:, 0], 0.6, rtol=1e-5)
    np.testing.assert_allclose(found.score[:, 1], 0.4, rtol=1e-5)
    assert found.cost_usd_micros.tolist() == [40.0, 10.0]


@pytest.mark.parametrize("kind", [None, "", "never-seen"])
def test_work_of_no_known_kind_is_expected_as_over_all_kinds(kind: str | None) -> None:
    view = told(row("", {0: 0.4}), row("a", {0: 0.9}))
    told(row("", {0: 0.5}, kind=""), row("a", {0: 0.7}, kind=""), view=view)
    np.testing.assert_allclose(view.predict("d", kind, ["a"], SURFACES, NOTHING).score, 0.7, rtol=1e-6)


def test_similarity_is_the_cosine_to_the_mean_of_successes() -> None:
    centre = np.zeros(256)
    centre[0] = 1
    tasks = np.zeros((3, 256), np.float16)
    tasks[0, 0], tasks[1, 0], tasks[2, 1] = 1, -1, 1
    rows = [{**row("a", {}, kind=""), "centre": centre.tolist(), "weights": None, "variances": None}]
    view = Beliefs().apply(centres_key("d"), codec.from_dicts("belief", rows))
    found = view.predict("d", "k", ["a", "b"], SURFACES, tasks)
    assert found.similarity.tolist() == [[1, 0], [-1, 0], [0, 0]]
    view.apply(centres_key("d"), None)
    assert not view.predict("d", "k", ["a", "b"], SURFACES, tasks).similarity.any()


def test_the_last_value_of_a_key_wins_and_a_tombstone_forgets() -> None:
    view = told(row("", {0: 0.4}), row("a", {0: 0.9}), row("b", {0: 0.8}))
    told(row("", {0: 0.3}), row("a", {0: 0.6}, model_version=6), view=view)
    found = view.predict("d", "k", ["a", "b"], SURFACES, NOTHING)
    np.testing.assert_allclose(found.score[0], [0.6, 0.3], rtol=1e-5)
    view.apply(key_of("d", "k"), None)
    assert view.predict("d", "k", ["a"], SURFACES, NOTHING).score[0, 0] == PRIOR_SCORE


def test_agents_may_be_asked_before_and_after_they_are_known() -> None:
    view = Beliefs()
    assert view.predict("d", "k", ["late", "a"], SURFACES, NOTHING).score[0, 0] == PRIOR_SCORE
    told(row("", {0: 0.4}), row("late", {0: 0.9}), view=view)
    np.testing.assert_allclose(
        view.predict("d", "k", ["late", "a"], SURFACES, NOTHING).score[0], [0.9, 0.4], rtol=1e-5
    )


def test_domains_are_apart_and_keys_do_not_collide() -> None:
    view = told(row("", {0: 0.4}), row("a", {0: 0.9}))
    assert view.predict("other", "k", ["a"], SURFACES, NOTHING).score[0, 0] == PRIOR_SCORE
    assert (view.version("d"), view.version("other")) == (5, 0)
    assert key_of("t/x", "y") != key_of("t", "x/y")


def test_a_value_without_any_agent_is_refused() -> None:
    with pytest.raises(ValueError, match="any agent"):
        told(row("a", {0: 0.5}))
