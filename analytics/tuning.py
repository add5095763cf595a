"""How a domain's policy follows the evidence: exploration, weights, pair bonus; damped, within bounds.

- exploration follows the regret that the posteriors still expect (what Thompson draws would lose against the leader):
  none left, little exploration; a detected change of an agent raises it, and it falls back as posteriors settle.
- a weight of the utility grows with the share of outcomes that its term could have prevented: time-outs for latency,
  failures for stability, refused for money or dear for its score for resource.
- the pair bonus grows with the share of mined pairs whose effect is more than noise.

Each proposal goes a fixed part of the way (`DAMPING`), rounded, so that noise changes nothing. These are rules, not an
optimiser: issue 5 puts one behind the same guard. Constants were set by reasoning and are not fitted to any table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from aos.analytics.beliefs import ALL_KINDS, Standing
from aos.analytics.strategies import BOUNDS, DEFAULT, WEIGHTS, Strategy, guard
from aos.codecs.errors import InvariantError

DAMPING = 0.3  # part of the way to the target that one proposal goes
STEP = 0.01  # what every number is rounded to: smaller moves are no new version
REGRET_FULL = 0.02  # expected loss of score at which exploration stays at its default
DRIFT_RAISE = 2.0  # times the default, after a change of an agent
PRESSURE = (
    2.0  # a weight whose term is to blame for all outcomes grows by 1 + this, before the sum is 1 again
)


@dataclass(slots=True)
class Evidence:
    """What happened since the last proposal, over attempts (and requests, where it says so)."""

    attempts: int = 0
    score: float = 0.0  # sum
    timeouts: int = 0
    failures: int = 0
    requests: int = 0
    expired: int = 0  # requests that ended or would have ended too late
    over_budget: int = 0  # requests refused for money


def expected_regret(standing: Standing, exploration: float) -> float:
    """Score that a draw loses against the leader, expected by the posteriors themselves, on a typical task.

    Each agent is drawn with the normal chance of beating the leader, normalised: close to the true chance of being
    best (within .02 of simulation for two to ten agents, test_tuning.py), and closed.
    """
    if len(standing.score) < 2:
        return 0.0
    leader = int(standing.score.argmax())
    gaps = (standing.score[leader] - standing.score).astype(np.float64)
    deviations = exploration * standing.deviation.astype(np.float64)
    spread = np.sqrt(deviations**2 + deviations[leader] ** 2)
    chances = np.array(
        [_above(-gap / width) if width > 0 else 0.0 for gap, width in zip(gaps, spread, strict=True)]
    )
    chances[leader] = 1.0 - chances[np.arange(len(gaps)) != leader].max()
    return float((chances * gaps).sum() / chances.sum())


def propose(
    current: Strategy,
    evidence: Evidence,
    standings: Sequence[Standing],
    effects: Sequence[float],
    drifts: int,
) -> tuple[Strategy, str]:
    """The next policy and why, with the figures; equal to `current` when nothing is to change. The caller versions it.

    `drifts`: changes of agents detected since the last proposal; `effects`: of the mined pairs.
    """
    regret = _regret(standings)
    exploration = _exploration(regret, drifts)
    weights, blame = _weights(evidence)
    real = sum(1 for effect in effects if effect) / len(effects) if effects else 0.0
    targets = {"exploration": exploration, "pair_bonus": DEFAULT.pair_bonus * (1.0 + real), **weights}
    moved = {name: _towards(getattr(current, name), target, name) for name, target in targets.items()}
    moved |= _whole(moved)
    if drifts:  # at once: what was settled is not, and waiting costs outcomes
        moved["exploration"] = exploration
    proposal = Strategy(**{**asdict(current), **moved})
    broken = guard(proposal)
    if broken:
        raise InvariantError("AOS9001", f"a proposal breaks its bounds: {'; '.join(broken)}")
    if proposal == current:
        return current, ""
    mean = evidence.score / evidence.attempts if evidence.attempts else 0.0
    reason = (
        f"expected regret {regret:.4f}, {drifts} agents changed, mean score {mean:.3f} "
        f"of {evidence.attempts} attempts, {blame}; {real:.0%} of {len(effects)} pairs have an effect"
    )
    return proposal, reason


def _regret(standings: Sequence[Standing]) -> float:
    """Expected regret over kinds, by how many outcomes each had; that over all kinds counts only where it is alone."""
    kinds = [one for one in standings if one.kind != ALL_KINDS] or list(standings)
    counts = [float(one.count.sum()) for one in kinds]
    if not sum(counts):
        return REGRET_FULL
    regrets = [expected_regret(one, DEFAULT.exploration) for one in kinds]
    return sum(count * regret for count, regret in zip(counts, regrets, strict=True)) / sum(counts)


def _exploration(regret: float, drifts: int) -> float:
    low = BOUNDS["exploration"][0]
    if drifts:
        return DEFAULT.exploration * DRIFT_RAISE
    return low + (DEFAULT.exploration - low) * min(1.0, regret / REGRET_FULL)


def _weights(evidence: Evidence) -> tuple[dict[str, float], str]:
    attempts, requests = max(evidence.attempts, 1), max(evidence.requests, 1)
    pressure = {
        "weight_success": 0.0,
        "weight_latency": evidence.timeouts / attempts + evidence.expired / requests,
        "weight_stability": evidence.failures / attempts,
        "weight_resource": evidence.over_budget / requests,
    }
    raw = {name: getattr(DEFAULT, name) * (1.0 + PRESSURE * pressure[name]) for name in WEIGHTS}
    total = sum(raw.values())
    blame = (
        f"{evidence.timeouts} timed out, {evidence.failures} failed, of {evidence.requests} requests "
        f"{evidence.expired} expired and {evidence.over_budget} were over budget"
    )
    return {name: _within(value / total, name) for name, value in raw.items()}, blame


def _whole(weights: dict[str, float]) -> dict[str, float]:
    """The four weights with sum 1: success takes what the others leave, and they give or take where it may not."""
    low, high = BOUNDS["weight_success"]
    others = {name: weights[name] for name in WEIGHTS[1:]}
    while (rest := round(1.0 - sum(others.values()), 6)) < low:
        name = max(others, key=lambda name: others[name])
        others[name] = round(others[name] - STEP, 6)
    while (rest := round(1.0 - sum(others.values()), 6)) > high:
        name = min(others, key=lambda name: others[name])
        others[name] = round(others[name] + STEP, 6)
    return {"weight_success": rest, **others}


def _towards(now: float, target: float, name: str) -> float:
    """Part of the way, rounded to `STEP`; a target less than half a step beyond the way stays where it is."""
    moved = now + DAMPING * (target - now)
    return now if abs(moved - now) < STEP / 2 else _within(round(round(moved / STEP) * STEP, 6), name)


def _within(value: float, name: str) -> float:
    low, high = BOUNDS[name]
    return min(max(value, low), high)


def _above(z: float) -> float:
    """Chance that a standard normal is below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))
