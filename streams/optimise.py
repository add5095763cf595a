"""optimise: follows each learning domain's evidence with its policy, within the guard's bounds.

in: aos.experiences (kinds attempt and request); views: beliefs, patterns, strategies
out: aos.strategies, key <domain>: the active policy, with reason and evidence
key: the learning domain
state: evidence since the last proposal and the policy in force, by domain (at most DOMAINS_MAX)
order: a view: the last version of a name wins. A version is the next offset of the experiences it rests on, as for
    beliefs: messages read again after a crash find what was made of them in the view and adopt it, they never publish
    another policy under a version that is out
errors: AOS9001 when a proposal breaks a bound: a bug, it is not published
cost: .06 ms a message and .6 us an experience; .2 ms a proposal, every `optimise_every` attempts of a domain
source: analytics/tuning.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

import pyarrow as pa

from aos.analytics.beliefs import ALL_KINDS, Beliefs
from aos.analytics.patterns import Patterns
from aos.analytics.strategies import DEFAULT, Strategy
from aos.analytics.tuning import Evidence, propose
from aos.codecs import columns as arrays
from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams.processor import Batch, Output, Step, Views

DOMAINS_MAX = 1_000  # of a partition; beyond it the one idle longest starts again from the default
OVER_BUDGET, TOO_LATE = "AOS2006", "AOS2007"


@dataclass(slots=True)
class Course:
    """One domain. `drifts`: changes that beliefs had counted at the last proposal; `total`: attempts ever."""

    evidence: Evidence = field(default_factory=Evidence)
    strategy: Strategy = DEFAULT
    drifts: int = 0
    total: int = 0


@dataclass(slots=True)
class State:
    """Domains, the one idle longest first."""

    courses: dict[str, Course] = field(default_factory=dict)


def initial(partition: int) -> State:
    """Every domain has the built-in policy."""
    return State()


def step(state: State, batch: Batch, now: int, views: Views, seed: int) -> Step[State]:
    """Count a message of experiences; propose where enough came."""
    settings: Settings = views.settings
    outputs = []
    for domain in () if batch.tick else _count(state, batch.rows):
        course = state.courses[domain]
        if course.evidence.attempts < settings.optimise_every:
            continue
        published = views["aos.strategies"].own(domain)
        if published is not None and published.version > batch.offset:
            course.evidence, course.strategy = Evidence(), published
            continue
        beliefs: Beliefs = views["aos.beliefs"]
        patterns: Patterns = views["aos.patterns"]
        standings = beliefs.standings(domain)
        drifts = sum(one.drift_count for one in standings if one.kind == ALL_KINDS)
        proposal, reason = propose(
            course.strategy,
            course.evidence,
            standings,
            patterns.effects(domain),
            max(0, drifts - course.drifts),
        )
        course.evidence, course.drifts = Evidence(), drifts
        if proposal != course.strategy:
            course.strategy = replace(proposal, version=batch.offset + 1)
            outputs.append(_active(domain, course, reason, now))
    return Step(state, outputs)


def dump(state: State) -> dict[str, pa.RecordBatch]:
    """The state as record batches."""
    rows = [
        {
            "domain": domain,
            "drifts": one.drifts,
            "total": one.total,
            **asdict(one.evidence),
            **asdict(one.strategy),
        }
        for domain, one in state.courses.items()
    ]
    return {"courses": pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)}


def load(partition: int, parts: Mapping[str, pa.RecordBatch]) -> State:
    """The state whose `dump` this is."""
    state = State()
    for row in parts["courses"].to_pylist():
        evidence = Evidence(**{item.name: row[item.name] for item in fields(Evidence)})
        strategy = Strategy(**{item.name: row[item.name] for item in fields(Strategy)})
        state.courses[row["domain"]] = Course(evidence, strategy, row["drifts"], row["total"])
    return state


_NUMBERS = {**asdict(Evidence()), **asdict(DEFAULT)}
_SCHEMA = pa.schema(
    {
        "domain": pa.string(),
        "drifts": pa.int64(),
        "total": pa.int64(),
        **{
            name: pa.float64() if isinstance(value, float) else pa.int64() for name, value in _NUMBERS.items()
        },
    }
)


_TEACHES = ("attempt", "request")


def _count(state: State, rows: pa.RecordBatch) -> list[str]:
    """Add rows to their domains' evidence; return the domains, in order."""
    texts = [
        rows.column(name).to_numpy(zero_copy_only=False).tolist()
        for name in ("domain", "kind", "status", "code")
    ]
    scores = rows.column("score")
    numbers = (arrays.floats(scores, 0.0), arrays.valid(scores), arrays.valid(rows.column("quarantined")))
    seen: dict[str, None] = {}
    for domain, kind, status, code, score, scored, quarantined in zip(
        *texts, *(column.tolist() for column in numbers), strict=True
    ):
        if quarantined or kind not in _TEACHES:
            continue
        if domain not in seen:
            seen[domain] = None
            state.courses[domain] = state.courses.pop(domain, Course())
        course = state.courses[domain]
        evidence = course.evidence
        if kind == "request":
            evidence.requests += 1
            evidence.expired += status == "expired" or code == TOO_LATE
            evidence.over_budget += code == OVER_BUDGET
        elif scored:
            course.total += 1
            evidence.attempts += 1
            evidence.score += score
            evidence.timeouts += status == "timeout"
            evidence.failures += status == "failed"
    while len(state.courses) > DOMAINS_MAX:
        del state.courses[next(iter(state.courses))]
    return [domain for domain in seen if domain in state.courses]


def _active(domain: str, course: Course, reason: str, now: int) -> Output:
    row = {
        "name": domain, "status": "active", "reason": reason, "evidence_count": course.total, "changed_at": now,
        **asdict(course.strategy),
    }  # fmt: skip
    return Output("aos.strategies", codec.from_dicts("strategy", [row]), key=domain.encode())
