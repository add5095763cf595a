"""How long it took until work went on after each fault and each kill, by the append times of the logs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos.judge_read import Evidence, tenant_of

# what a process makes: the first message after a kill that only its successor can have written
PRODUCT = {
    "worker-edge-0": "aos.tasks",
    "worker-core-0": "aos.results",
    "worker-learning-0": "aos.beliefs",
    "worker-keeping-0": "aos.experiences",
}
IN_FLIGHT_S = 0.25  # what was on its way to the broker when its sender was killed


@dataclass(frozen=True)
class Recovery:
    """`seconds`: None when nothing was asked afterwards. `drained`: until the last of what waited was done."""

    what: str
    number: int
    seconds: float | None
    limit: float
    outage: float = 0.0
    drained: float | None = None
    missing: bool = False


def completions(evidence: Evidence) -> list[tuple[float, float]]:
    """(sent at, first result at) of every acknowledged request that ended, in the order of sending."""
    first: dict[tuple[str, str], float] = {}
    for row in evidence.rows("aos.results"):
        place = (tenant_of(row["_topic"], "aos.results"), row["id"] or "")
        first[place] = min(row["_at"], first.get(place, row["_at"]))
    return sorted((sent.at, first[place]) for place, sent in evidence.sent.items() if place in first)


def recoveries(evidence: Evidence) -> Iterator[Recovery]:
    """Of each fault as a whole, then of each process that was killed."""
    done = completions(evidence)
    sent = [at for at, _ in done]
    for note in evidence.noted("fault"):
        healed = note["healed"]
        later = [end for _, end in done[bisect_left(sent, healed) :]]
        waited = [end for at, end in done if at < healed]
        yield Recovery(
            f"fault {note['number']} ({note['target']})", note["number"],
            min(later) - healed if later else None, note["recovery_limit_s"], note["outage"],
            max(waited) - healed if waited else None,
            missing=not later and any(one.at > healed for one in evidence.sent.values()),
        )  # fmt: skip
    yield from of_kills(evidence, done, sent)


def of_kills(evidence: Evidence, done: list[tuple[float, float]], sent: list[float]) -> Iterator[Recovery]:
    """Of each killed process: until it made something again, and until a request sent afterwards was done."""
    made: dict[str, list[float]] = {}
    for name, topic in PRODUCT.items():
        made[name] = sorted({row["_at"] for row in evidence.rows(topic)})
    for row in evidence.rows("aos.outcomes"):
        made.setdefault(f"service-{(row['agent'] or '').split('-')[0]}", []).append(row["_at"])
    for note in evidence.noted("kill"):
        at, name = note["at"], note["name"]
        times = made.get(name, [])
        times.sort()
        own = times[bisect_right(times, at + IN_FLIGHT_S) :]
        later = [end for _, end in done[bisect_left(sent, at) :]]
        both = [min(part) - at for part in (own[:1], later) if part]
        yield Recovery(f"kill of {name}", 0, max(both) if both else None, 30.0)
