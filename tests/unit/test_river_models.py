"""River's models: they learn, they leave and enter as numbers, they go on bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.analytics.river_models import HELD, KEPT, Detector, OnlineModels


def taught(count: int, seed: int = 0) -> OnlineModels:
    """Score falls with x0 and by kind; agent slow takes 100 ms, agent fast 1 ms; dear costs 1,000."""
    rng = np.random.default_rng(seed)
    models = OnlineModels()
    for _ in range(count):
        teach(models, rng)
    return models


def teach(models: OnlineModels, rng: np.random.Generator) -> None:
    surface = rng.random(16)
    kind, agent = str(rng.choice(["easy", "hard"])), str(rng.choice(["slow", "fast"]))
    score = 0.9 - 0.6 * surface[0] - (0.2 if kind == "hard" else 0.0)
    latency, cost = (100_000.0, 1000.0) if agent == "slow" else (1_000.0, 10.0)
    models.learn(kind, agent, surface.tolist(), score, latency, cost)


def test_success_prior_follows_features_and_kinds() -> None:
    models = taught(3000)
    prior = models.prior(["easy"])
    assert prior is not None
    assert prior[1] == pytest.approx(-0.6, abs=0.1)
    assert np.abs(prior[2:]).max() < 0.1
    hard = models.prior(["hard"])
    assert hard is not None
    assert prior[0] - hard[0] == pytest.approx(0.2, abs=0.05)


def test_latency_and_cost_are_expected_of_each_agent() -> None:
    models = taught(3000)
    latency, cost = (models.expected(name, "easy", ["slow", "fast", "new"]) for name in ("latency", "cost"))
    assert latency is not None
    assert cost is not None
    assert latency[0] == pytest.approx(100_000, rel=0.2)
    assert latency[1] == pytest.approx(1_000, rel=0.2)
    assert latency[1] < latency[2] < latency[0]
    assert cost[0] > 20 * cost[1]


def test_young_models_say_nothing() -> None:
    models = taught(10)
    assert models.prior(["easy"]) is None
    assert models.expected("latency", "easy", ["slow"]) is None


def test_export_goes_on_bit_for_bit() -> None:
    models = taught(200)
    again = OnlineModels.load(models.dump())
    assert again.dump() == models.dump()
    for one, seed in ((models, 9), (again, 9)):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            teach(one, rng)
    assert again.dump() == models.dump()


def test_a_detector_sees_a_change_and_keeps_what_came_after() -> None:
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        detector = Detector()
        assert not detector.update((rng.random(300) < 0.7).astype(float).tolist())
        after = 0
        while not detector.update([float(rng.random() < 0.05)]):
            after += 1
            assert after < 60
        assert abs(len(detector.values) - after - 1) <= 12
        assert np.mean(detector.values) < 0.3
        delays.append(after)
    assert np.mean(delays) < 25


def test_a_steady_stream_is_no_change() -> None:
    alarms = 0
    for seed in range(20):
        alarms += Detector().update((np.random.default_rng(seed).random(1000) < 0.6).astype(float).tolist())
    assert alarms <= 2


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), max_size=3 * HELD), st.integers(0, 2**32 - 1))
def test_a_detector_is_defined_by_its_values(values: list[float], seed: int) -> None:
    detector = Detector()
    detector.update(values)
    assert len(detector.values) < HELD
    again = Detector(detector.values)
    rest = (np.random.default_rng(seed).random(2 * KEPT) < 0.2).astype(float).tolist()
    for value in rest:
        assert detector.update([value]) == again.update([value])
        assert detector.values == again.values


def test_a_rare_feature_far_out_does_not_throw_the_weights_away() -> None:
    rng = np.random.default_rng(2)
    models = OnlineModels()
    for at in range(3000):
        surface = np.full(16, 0.5)
        surface[0] = rng.random()
        surface[1] = 1.0 if at % 700 == 699 else 0.0  # 26 deviations from its mean
        models.learn("k", "a", surface.tolist(), float(rng.random() < 0.6), 1000.0, 1.0)
    prior = models.prior(["k"])
    assert prior is not None
    assert prior[0] + prior[1] * 0.5 + prior[3:].sum() * 0.5 == pytest.approx(0.6, abs=0.15)
    assert np.abs(prior).max() < 2
