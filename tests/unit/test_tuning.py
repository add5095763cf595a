"""Proposals: bounded, damped, explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.analytics import tuning
from aos.analytics.beliefs import Standing
from aos.analytics.strategies import BOUNDS, DEFAULT, Strategy, guard
from aos.analytics.tuning import Evidence, expected_regret, propose
from aos.codecs.errors import InvariantError


def standing(scores: list[float], deviation: float) -> Standing:
    count = len(scores)
    return Standing(
        "k", np.array(scores, np.float32), np.full(count, deviation, np.float32), np.full(count, 9.0), 0
    )


EVIDENCE = st.builds(
    lambda attempts, shares: Evidence(
        attempts, attempts * shares[0], int(attempts * shares[1]), int(attempts * shares[2]), attempts,
        int(attempts * shares[3]), int(attempts * shares[4]),
    ),
    st.integers(0, 1000), st.lists(st.floats(0, 1), min_size=5, max_size=5),
)  # fmt: skip


@given(
    st.lists(EVIDENCE, min_size=1, max_size=12),
    st.floats(0, 1),
    st.integers(0, 3),
    st.lists(st.floats(-1, 1)),
)
def test_no_evidence_leads_out_of_bounds(
    evidences: list[Evidence], deviation: float, drifts: int, effects: list[float]
) -> None:
    strategy = DEFAULT
    for evidence in evidences:
        following, reason = propose(strategy, evidence, [standing([0.9, 0.4], deviation)], effects, drifts)
        assert guard(following) == []
        assert (following == strategy) == (not reason)
        most = DEFAULT.exploration * tuning.DRIFT_RAISE
        if drifts:
            assert following.exploration == most
        else:
            assert abs(following.exploration - strategy.exploration) <= tuning.DAMPING * most
        strategy = following


def test_the_same_evidence_settles() -> None:
    strategy, evidence = DEFAULT, Evidence(100, 50.0, 40, 10, 100, 5, 5)
    for _ in range(40):
        strategy, _ = propose(strategy, evidence, [standing([0.9, 0.4], 0.1)], [], 0)
    again, reason = propose(strategy, evidence, [standing([0.9, 0.4], 0.1)], [], 0)
    assert again == strategy
    assert reason == ""


def test_pressure_passes_and_weights_return() -> None:
    strategy = DEFAULT
    for _ in range(30):
        strategy, _ = propose(strategy, Evidence(100, 0.0, 100, 0, 0), [], [], 0)
    assert strategy.weight_latency > 0.3
    for _ in range(40):
        strategy, _ = propose(strategy, Evidence(100, 100.0), [], [], 0)
    assert strategy.weight_latency == pytest.approx(DEFAULT.weight_latency, abs=0.03)


def test_pairs_with_an_effect_raise_their_bonus() -> None:
    strategy = DEFAULT
    for _ in range(20):
        strategy, _ = propose(strategy, Evidence(100, 100.0), [], [0.1, 0.2], 0)
    assert DEFAULT.pair_bonus < strategy.pair_bonus <= BOUNDS["pair_bonus"][1]


def test_reason_tells_the_figures() -> None:
    _, reason = propose(
        DEFAULT, Evidence(100, 25.0, 40, 7, 50, 3, 2), [standing([0.9, 0.1], 0.01)], [0.0, 0.2], 2
    )
    for part in (
        "2 agents changed",
        "mean score 0.250",
        "40 timed out",
        "7 failed",
        "3 expired",
        "2 were over",
        "50%",
    ):
        assert part in reason


def test_a_proposal_that_breaks_a_bound_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "DRIFT_RAISE", 10.0)
    with pytest.raises(InvariantError, match="AOS9001"):
        propose(DEFAULT, Evidence(100, 0.0), [standing([0.9, 0.1], 0.01)], [], 1)


@pytest.mark.parametrize(
    "scores", [[0.5, 0.5], [0.6, 0.5], [0.7, 0.6, 0.2], [0.5] * 6 + [0.55], [0.6, 0.58, 0.5, 0.4, 0.3]]
)
@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.2])
def test_expected_regret_is_near_that_of_true_draws(scores: list[float], deviation: float) -> None:
    rng = np.random.default_rng(0)
    draws = np.array(scores) + 0.5 * deviation * rng.standard_normal((40_000, len(scores)))
    true = max(scores) - np.array(scores)[draws.argmax(1)].mean()
    assert expected_regret(standing(scores, deviation), 0.5) == pytest.approx(true, abs=0.02)


def test_one_agent_has_no_regret() -> None:
    assert expected_regret(standing([0.4], 0.2), 1.0) == 0.0


def test_a_bound_moved_by_hand_comes_back() -> None:
    far = replace(DEFAULT, exploration=BOUNDS["exploration"][1])
    assert isinstance(far, Strategy)
    for _ in range(30):
        far, _ = propose(far, Evidence(100, 100.0), [standing([0.9, 0.1], 0.01)], [], 0)
    assert far.exploration < DEFAULT.exploration
