"""Mining as functions: the fit behind pairs, ids that last, what is not clustered on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from aos.analytics import mining
from aos.analytics.mining import Collaboration, Pair, Pattern, clusters, features, mine, pairs


def team(
    serial: int, members: tuple[str, ...], score: float, kind: str = "k", latency: int = 1000
) -> Collaboration:
    found = tuple(Pair(first, second, score) for first, second in pairwise(members))
    return Collaboration(serial.to_bytes(16, "big"), 0, serial, kind, members, score, latency, 10, found)


def teams(count: int, seed: int = 0, size: int = 12) -> list[Collaboration]:
    """Random pairs of `size` agents, three kinds; all are as good as each other."""
    rng = np.random.default_rng(seed)
    found = []
    for serial in range(count):
        first, second = rng.choice(size, 2, replace=False)
        kind = f"kind{serial % 3}"
        found.append(
            team(
                serial,
                (f"a{first}", f"a{second}"),
                float(rng.random() < 0.6),
                kind,
                int(rng.integers(1, 9999)),
            )
        )
    return found


def test_a_pairs_effect_is_against_the_fit_without_it() -> None:
    rng = np.random.default_rng(1)
    keys = [(first, second) for first in "abcd" for second in "wxyz"]
    means, weights = rng.random(16), rng.integers(5, 50, 16) / 0.2
    effects, _ = mining._beyond(keys, means, weights)
    for left, key in enumerate(keys):
        rest = [at for at in range(16) if at != left]
        design = np.array(
            [
                [1.0] + [float(f == name) for name in "abcd"] + [float(s == name) for name in "wxyz"]
                for f, s in keys
            ]
        )
        precision = np.diag([1e-6] + [1 / mining.SKILL_SPREAD**2] * 8)
        normal = precision + design[rest].T @ (weights[rest, None] * design[rest])
        expected = design[left] @ np.linalg.solve(normal, design[rest].T @ (weights[rest] * means[rest]))
        assert effects[left] == pytest.approx(means[left] - expected, abs=1e-9), key


def test_where_nothing_is_planted_few_pairs_pass_for_something() -> None:
    passed = total = 0
    for seed in range(5):
        found = pairs("d", teams(1500, seed))
        total += len(found)
        passed += sum(abs(one.effect) > 1.96 * one.error for one in found)
    assert total > 500
    assert passed / total < 0.08


def test_scores_move_no_cluster() -> None:
    window = teams(300)
    turned = [one._replace(score=1 - one.score) for one in window]
    assert (features(window) == features(turned)).all()


def test_clusters_cover_dense_teams_and_measure_their_scores() -> None:
    window = [team(n, ("a", "b"), 1.0) for n in range(60)] + [
        team(n, ("c", "d", "e"), 0.0) for n in range(60, 120)
    ]
    one, other = sorted(clusters(window), key=lambda found: -found.score)
    assert (set(one.members), set(other.members)) == ({"a", "b"}, {"c", "d", "e"})
    assert (one.support, one.score, one.baseline, one.effect) == (60, 1.0, 0.5, 0.5)
    assert one.effect > 3 * one.error > 0
    assert other.effect == -0.5


def test_few_collaborations_are_not_clustered() -> None:
    assert clusters([team(n, ("a", "b"), 1.0) for n in range(mining.COLLABORATIONS_MIN - 1)]) == []


def test_ids_last_while_the_mix_does_and_are_never_given_twice() -> None:
    window = [team(n, ("a", "b"), 1.0) for n in range(60)] + [
        team(n, ("c", "d"), 0.0) for n in range(60, 120)
    ]
    first = mine("d", window, [])
    grown = [team(n, ("a", "b"), 0.5) for n in range(200)] + [
        team(n, ("c", "e"), 0.0) for n in range(200, 300)
    ]
    second = mine("d", grown, first)

    def ids(found: list[Pattern]) -> dict[frozenset[str], str]:
        return {frozenset(one.members): one.id for one in found if one.kind == "cluster"}

    assert ids(second)[frozenset("ab")] == ids(first)[frozenset("ab")]
    assert ids(second)[frozenset("ce")] == ids(first)[frozenset("cd")]  # half of it stayed
    third = mine("d", [team(n, ("x", "y"), 0.5) for n in range(80)] + window[:60], second)
    assert ids(third)[frozenset("xy")] not in ids(second).values()
    for found in (first, second, third):
        assert len({one.id for one in found}) == len(found)


def test_two_like_clusters_do_not_share_an_id() -> None:
    known = [Pattern("old", "cluster", ("a",), "k", 1, 0.5, 0.5, 0.0, 0.1, mix={("k", "a"): 1.0})]
    twins = [replace(known[0], id=""), replace(known[0], id="")]
    found = mining._named("d", twins, known)
    assert len({one.id for one in found}) == 2
    assert found[0].id == "old"


def test_the_same_window_gives_the_same_patterns() -> None:
    window = teams(400)
    assert mine("d", window, []) == mine("d", list(window), [])


def test_too_many_agents_are_cut_to_the_most_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "PAIR_AGENTS_MAX", 4)
    window = [team(n, ("a", "b"), 1.0) for n in range(20)] + [team(n, ("c", "d"), 1.0) for n in range(10)]
    window += [team(n, ("e", "f"), 1.0) for n in range(9)]
    assert [one.members for one in pairs("d", window)] == [("a", "b"), ("c", "d")]


def test_mining_a_whole_window_is_measured(measured: Callable[[str], None]) -> None:
    window = teams(5000, size=60)
    mine("d", window[:100], [])  # the import
    start = time.process_time()
    found = mine("d", window, [])
    measured(
        f"mining 5,000 collaborations of 60 agents: {time.process_time() - start:.2f} s CPU, {len(found)} patterns"
    )
    assert found
