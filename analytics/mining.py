"""Which collaborations work: clusters and ordered pairs in a window of finished requests.

A *collaboration* is a request that two or more agents had a part in. HDBSCAN clusters collaborations by who, on what
and at what pace; how well is measured on the clusters and not clustered on, because that would make effects out of
noise. A *pair* is an agent that worked on what another had made, with the score of its attempt; its effect is what
goes beyond both agents' own averages (their other pairs), so that two good agents are not yet a good pair.

All is deterministic: agents and kinds enter as fixed pseudo-random directions (a random projection of one-hot
columns), windows in log order. Clusters keep their id while their mix of agents and kinds stays mostly the same.

Source: Campello, Moulavi, Sander 2013 (HDBSCAN). Cost: .8 to 1.3 s of CPU for 5,000 collaborations.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

COLLABORATIONS_MIN = 50  # fewer are not clustered
CLUSTER_SHARE_MIN, CLUSTER_MIN = 0.01, 15  # smallest cluster: a share of the window, and a number
NEIGHBOURS = 5  # HDBSCAN's min_samples: how many make a place dense
CLUSTERS_MAX, PAIRS_MAX, MEMBERS_MAX = 200, 2_000, 16  # of a domain; of a cluster
PAIR_AGENTS_MAX = 600  # agents in either place that the pairs are fitted for: one solve of that size, .1 s
MEMBER_SHARE_MIN = 0.1  # of a cluster's collaborations an agent must be in to be called a member
PAIR_SUPPORT_MIN = 5
OVERLAP_MIN = 0.5  # of two clusters' mixes, to be the same cluster
AGENT_PLACES, KIND_PLACES = 8, 4  # dimensions of the random projections
PACE_WEIGHT = 0.15  # of a standard deviation of log latency or log cost, against 1 for another team
VARIANCE_PRIOR, VARIANCE_PRIOR_COUNT = 0.1, 5.0  # of scores: a few equal ones are not yet certain
VARIANCE_MIN = 1e-4
SKILL_SPREAD = 0.2  # standard deviation of what an agent adds to a pair, before any outcome
MISFIT_PRIOR_COUNT = 4.0  # pairs that fit as chance has it, before any are seen


class Pair(NamedTuple):
    """An attempt on what another agent had made."""

    first: str
    second: str
    score: float


class Collaboration(NamedTuple):
    """A finished request; members in order of work."""

    request_id: bytes
    round: int
    finished_at: int
    kind: str
    members: tuple[str, ...]
    score: float
    latency_us: int
    cost_usd_micros: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What was found; fields as in the record. `mix` is a cluster's share of each (kind, agent), to know it again."""

    id: str
    kind: str  # cluster or pair
    members: tuple[str, ...]
    task_kind: str
    support: int
    score: float
    baseline: float
    effect: float
    error: float
    persistence: float = 0.0
    centre: tuple[float, ...] = ()
    mix: dict[tuple[str, str], float] = field(default_factory=dict)


def mine(domain: str, window: Sequence[Collaboration], known: Sequence[Pattern]) -> list[Pattern]:
    """Clusters, then pairs of a window; clusters that were known keep their id."""
    return [*_named(domain, clusters(window), known), *pairs(domain, window)]


def features(window: Sequence[Collaboration]) -> Doubles:
    """Who (agents), on what (kind), at what pace, by how many: [n, AGENT_PLACES + KIND_PLACES + 3]."""
    found = np.zeros((len(window), AGENT_PLACES + KIND_PLACES + 3))
    for row, one in enumerate(window):
        for name in one.members:
            found[row, :AGENT_PLACES] += _direction("agent", name, AGENT_PLACES)
        found[row, :AGENT_PLACES] /= len(one.members) ** 0.5
        found[row, AGENT_PLACES:-3] = _direction("kind", one.kind, KIND_PLACES)
        found[row, -3:] = np.log1p((one.latency_us, one.cost_usd_micros, len(one.members)))
    pace = found[:, -3:-1]
    spread = pace.std(0)
    found[:, -3:-1] = PACE_WEIGHT * (pace - pace.mean(0)) / np.where(spread > 0, spread, 1.0)
    return found


def clusters(window: Sequence[Collaboration]) -> list[Pattern]:
    """Dense groups of collaborations, with how much better than all others each scores; ids are still empty."""
    if len(window) < COLLABORATIONS_MIN:
        return []
    places = features(window)
    labels, persistence = _cluster(places, max(CLUSTER_MIN, int(CLUSTER_SHARE_MIN * len(window))))
    scores = np.array([one.score for one in window])
    found = []
    for label in range(min(int(labels.max()) + 1, CLUSTERS_MAX)):
        inside = labels == label
        rest = scores[~inside]
        members = [window[row] for row in np.flatnonzero(inside).tolist()]
        mine_, all_ = scores[inside], float(scores.mean())
        error = _error(mine_) if not len(rest) else (_error(mine_) ** 2 + _error(rest) ** 2) ** 0.5
        # against the others; scaled to "less the mean of all", which holds the cluster itself
        scale = len(rest) / len(scores)
        found.append(
            Pattern(
                "", "cluster", _members(members), Counter(one.kind for one in members).most_common(1)[0][0],
                len(members), float(mine_.mean()), all_, float(mine_.mean()) - all_, float(error * scale),
                float(persistence[label]), tuple(places[inside].mean(0).tolist()), _mix(members),
            )
        )  # fmt: skip
    return found


def pairs(domain: str, window: Sequence[Collaboration]) -> list[Pattern]:
    """Ordered pairs with enough support, most supported first, and what each does beyond its two agents.

    Pair means follow an additive model, mean + first + second, fitted by ridge regression. A pair's effect is its
    deviation from what the fit without it expects, its error that deviation's, widened where the other pairs do not
    follow the additive model either (externally studentised residuals: Cook and Weisberg 1982). An agent with fewer
    than three partners cannot be told from its pairs: both of two get effects of opposite sign.
    """
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    kinds: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in window:
        for pair in one.pairs:
            scores[pair.first, pair.second].append(pair.score)
            kinds[pair.first, pair.second][one.kind] += 1
    keys = _fitted(scores)
    if not keys:
        return []
    counts = np.array([len(scores[key]) for key in keys], np.float64)
    means = np.array([sum(scores[key]) / len(scores[key]) for key in keys])
    effects, errors = _beyond(keys, means, counts / _within(scores, keys))
    found = []
    for at, key in enumerate(keys):
        if counts[at] >= PAIR_SUPPORT_MIN:
            score, effect = float(means[at]), float(effects[at])
            kind = kinds[key].most_common(1)[0][0]
            id = f"pair-{_digest(domain, *key)}"
            baseline = score - effect
            found.append(
                Pattern(id, "pair", key, kind, int(counts[at]), score, baseline, effect, float(errors[at]))
            )
    return found


def _fitted(scores: dict[tuple[str, str], list[float]]) -> list[tuple[str, str]]:
    """Pairs that take part in the fit: the most supported, while their agents are not too many to solve for."""
    firsts: set[str] = set()
    seconds: set[str] = set()
    kept = []
    for key in sorted(scores, key=lambda key: (-len(scores[key]), key))[:PAIRS_MAX]:
        if len(firsts | {key[0]}) + len(seconds | {key[1]}) <= PAIR_AGENTS_MAX:
            firsts.add(key[0])
            seconds.add(key[1])
            kept.append(key)
    return kept


def _within(scores: dict[tuple[str, str], list[float]], keys: Sequence[tuple[str, str]]) -> float:
    """Variance of one score within its pair, pooled over pairs."""
    values = [np.array(scores[key]) for key in keys]
    raw = (
        sum(float(((part - part.mean()) ** 2).sum()) for part in values)
        + VARIANCE_PRIOR * VARIANCE_PRIOR_COUNT
    )
    return max(raw / (sum(len(part) - 1 for part in values) + VARIANCE_PRIOR_COUNT), VARIANCE_MIN)


def _beyond(keys: Sequence[tuple[str, str]], means: Doubles, weights: Doubles) -> tuple[Doubles, Doubles]:
    """Effect and error of each pair; `weights` are one over the variances of `means`."""
    firsts = {name: at + 1 for at, name in enumerate(sorted({key[0] for key in keys}))}
    seconds = {name: at + 1 + len(firsts) for at, name in enumerate(sorted({key[1] for key in keys}))}
    design = np.zeros((len(keys), 1 + len(firsts) + len(seconds)))
    design[:, 0] = 1.0
    for row, (first, second) in enumerate(keys):
        design[row, firsts[first]] = design[row, seconds[second]] = 1.0
    precision = np.full(design.shape[1], 1.0 / SKILL_SPREAD**2)
    precision[0] = 1e-6  # the mean of all is free
    normal = np.diag(precision) + design.T @ (weights[:, None] * design)
    solved = np.linalg.solve(normal, np.column_stack((design.T @ (weights * means), design.T)))
    residuals = means - design @ solved[:, 0]
    leverage = weights * np.einsum("ij,ji->i", design, solved[:, 1:])
    free = np.maximum(1.0 - leverage, 1e-9)
    # squared misfit of all other pairs when this one is left out, in units of what chance explains
    others = np.maximum((weights * residuals**2).sum() - weights * residuals**2 / free, 0.0)
    misfit = (others + MISFIT_PRIOR_COUNT) / (max(free.sum() - 1.0, 0.0) + MISFIT_PRIOR_COUNT)
    return residuals / free, np.sqrt(np.maximum(misfit, 1.0) / (weights * free))


def _error(scores: Doubles) -> float:
    """Standard error of the mean of scores."""
    raw = float(((scores - scores.mean()) ** 2).sum()) + VARIANCE_PRIOR * VARIANCE_PRIOR_COUNT
    return math.sqrt(raw / (len(scores) + VARIANCE_PRIOR_COUNT) / len(scores))


def _cluster(places: Doubles, smallest: int) -> tuple[npt.NDArray[np.int64], Doubles]:
    """HDBSCAN's label of each row (-1: noise) and each cluster's persistence."""
    import hdbscan  # seconds to import, and only the learning process needs it

    made: Any = hdbscan.HDBSCAN(
        min_cluster_size=smallest, min_samples=NEIGHBOURS, core_dist_n_jobs=1, algorithm="boruvka_kdtree"
    ).fit(places)
    return made.labels_.astype(np.int64), np.nan_to_num(np.asarray(made.cluster_persistence_, np.float64))


def _members(group: Sequence[Collaboration]) -> tuple[str, ...]:
    """Agents of a cluster, most frequent first."""
    counts = Counter(name for one in group for name in set(one.members))
    named = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(name for name, count in named if count >= MEMBER_SHARE_MIN * len(group))[:MEMBERS_MAX]


def _mix(group: Sequence[Collaboration]) -> dict[tuple[str, str], float]:
    counts = Counter((one.kind, name) for one in group for name in one.members)
    total = sum(counts.values())
    return {key: count / total for key, count in sorted(counts.items())}


def overlap(one: dict[tuple[str, str], float], other: dict[tuple[str, str], float]) -> float:
    """How much two mixes share, 0 to 1.

    >>> overlap({("k", "a"): 0.5, ("k", "b"): 0.5}, {("k", "a"): 0.75, ("j", "b"): 0.25})
    0.5
    """
    return sum(min(share, other.get(key, 0.0)) for key, share in one.items())


def _named(domain: str, found: Sequence[Pattern], known: Sequence[Pattern]) -> list[Pattern]:
    """Give clusters the ids of the known ones they overlap most with, each id once; new ones get new ids."""
    scored = [
        (-overlap(old.mix, new.mix), old.id, position)
        for position, new in enumerate(found)
        for old in known
        if old.kind == "cluster"
    ]
    ids: dict[int, str] = {}
    for score, id, position in sorted(scored):
        if -score >= OVERLAP_MIN and position not in ids and id not in ids.values():
            ids[position] = id
    taken = {old.id for old in known} | set(ids.values())
    for position, new in enumerate(found):
        serial = 0
        while position not in ids:
            id = f"cluster-{_digest(domain, new.task_kind, str(serial), *new.members)}"
            serial += 1
            if id not in taken:
                ids[position] = id
                taken.add(id)
    return [replace(new, id=ids[position]) for position, new in enumerate(found)]


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


@lru_cache(maxsize=20_000)
def _direction(family: str, name: str, size: int) -> Doubles:
    """A fixed unit vector for a name, pseudo-random: names are about orthogonal."""
    raw = blake2b(f"{family}\0{name}".encode(), digest_size=4 * size).digest()
    signed = np.frombuffer(raw, np.uint32).astype(np.float64) / 2**31 - 1.0
    direction: Doubles = signed / np.linalg.norm(signed)
    return direction
