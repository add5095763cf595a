"""Laws about attempts and answers, part of I5: evidence in, violations in words out. Nothing of AOS is imported.

An *answer* is a row of kind outcome in the ledger; it is *genuine* when it carries the token of an assignment in an
inbox, and repeats that assignment's request, step, attempt, agent and epoch. It is *in time* when it was appended
before the attempt's time was over, counted from the first row that assigned it, or from the last genuine sign of
progress. The first genuine answer in time decides an attempt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from tests.chaos.judge_read import Evidence, Row

WAITS_S = (2.0, 4.0, 8.0)  # docs/contract.md: tried again by another agent after 2, 4, 8 s
JITTER = 0.1
EDGE_S = (
    0.02  # so near to its end an attempt's answer may or may not have come in time: stamps are milliseconds
)

Step = tuple[bytes, int, int]  # request, round, step


@dataclass
class Attempt:
    """One attempt as the log tells it; times are append times in seconds."""

    number: int
    agent: str
    began: float
    place: int  # of its assignment in the ledger
    limit_s: float
    due: float = 0.0
    decided: Row | None = None
    withdrawn: int | None = None  # place of the row that says that its agent is gone
    doubtful: bool = False  # an answer came so near to the end that it may count or not

    @property
    def over(self) -> float:
        """When it ended: by its answer, else by its time."""
        return self.due if self.decided is None else float(self.decided["_now"])


@dataclass
class Answers:
    """The ledger's attempts and answers, put together with the inboxes."""

    evidence: Evidence
    attempts: dict[tuple[bytes, int, int, int], Attempt] = field(default_factory=dict)
    uncounted: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        work = self.work
        now: defaultdict[int, float] = defaultdict(float)
        for place, row in enumerate(self.evidence.rows("aos.ledger")):
            at = now[row["_partition"]] = max(row["_at"], now[row["_partition"]])
            if row["kind"] == "assigned":
                self._assign(place, row, at)
            elif row["kind"] == "refused" and row["agent"]:
                attempt = self.attempts.get((row["request_id"], row["round"], row["step"], row["attempt"]))
                if attempt is not None and attempt.agent == row["agent"] and attempt.withdrawn is None:
                    attempt.withdrawn = place
            elif row["kind"] == "outcome":
                self._answer(row, at, work.get(row.get("token") or b""))

    @cached_property
    def work(self) -> dict[bytes, Row]:
        """Assignments by their token."""
        return {row["token"]: row for row in self.evidence.rows("aos.inbox") if row["kind"] == "work"}

    @cached_property
    def given(self) -> dict[tuple[bytes, int, int, int], list[Row]]:
        """Assignments by request, round, step and attempt."""
        found: defaultdict[tuple[bytes, int, int, int], list[Row]] = defaultdict(list)
        for row in self.evidence.rows("aos.inbox"):
            if row["kind"] == "work":
                found[row["request_id"], row["round"], row["step"], row["attempt"]].append(row)
        return found

    def _assign(self, place: int, row: Row, at: float) -> None:
        key = (row["request_id"], row["round"], row["step"], row["attempt"])
        given = self.given.get(key)
        if key not in self.attempts and given:
            limit_s = given[0]["timeout_ms"] / 1000
            self.attempts[key] = Attempt(row["attempt"], row["agent"], at, place, limit_s, at + limit_s)

    def _answer(self, row: Row, at: float, work: Row | None) -> None:
        said = ("request_id", "step", "attempt", "agent", "epoch")
        genuine = work is not None and all(row[name] == work[name] for name in said)
        attempt = None
        if work is not None and genuine:
            attempt = self.attempts.get((work["request_id"], work["round"], work["step"], work["attempt"]))
        open_ = attempt is not None and attempt.decided is None and attempt.withdrawn is None
        if attempt is not None and open_ and abs(at - attempt.due) <= EDGE_S:
            attempt.doubtful = True
        if attempt is not None and open_ and at < attempt.due:
            if row["status"] == "progress":
                attempt.due = at + attempt.limit_s
            else:
                attempt.decided = {**row, "_now": at}
        elif row["status"] != "progress" and not (attempt is not None and attempt.doubtful):
            self.uncounted.append(row)

    @cached_property
    def steps(self) -> dict[Step, list[Attempt]]:
        """The attempts of each step, in the order in which they began."""
        found: defaultdict[Step, list[Attempt]] = defaultdict(list)
        for key, attempt in sorted(self.attempts.items(), key=lambda item: item[1].place):
            found[key[:3]].append(attempt)
        return found


def answers_count_once(evidence: Evidence) -> Iterator[str]:
    """I5: one attempt, one agent; the first valid answer counts, the rest is recorded; retries wait as documented."""
    if not evidence.rows("aos.inbox"):
        return  # nothing was handed out: that a result has an answer is another law's to say
    answers = Answers(evidence)
    yield from one_agent_each(answers)
    yield from first_valid_wins(answers)
    yield from rest_is_recorded(answers)
    yield from retries_wait(answers)


def one_agent_each(answers: Answers) -> Iterator[str]:
    """An attempt is handed to one agent, however often, and a result counts each attempt once."""
    tries: defaultdict[tuple[bytes, int], int] = defaultdict(int)
    for key, rows in answers.given.items():
        tries[key[:2]] += 1
        whom = {(row["service"], row["agent"], row["epoch"], row["token"]) for row in rows}
        if len(whom) > 1:
            names = sorted(f"{service}/{agent}" for service, agent, _, _ in whom)
            yield f"{key[0].hex()} {key[1:]} was handed to {', '.join(names)}"
    for row in answers.evidence.rows("aos.results"):
        made = tries[row["request_id"], row["round"]]
        if row["attempts"] != made:
            yield f"{row['id']} says {row['attempts']} attempts, {made} were handed out"


def first_valid_wins(answers: Answers) -> Iterator[str]:
    """The payload of an ok result was made by the first genuine answer in time to one of its steps."""
    made: defaultdict[tuple[bytes, int], set[bytes]] = defaultdict(set)
    doubtful: set[tuple[bytes, int]] = set()
    for (request, round, _), attempts in answers.steps.items():
        for attempt in attempts:
            if attempt.decided is not None and attempt.decided["status"] == "ok":
                made[request, round].add(attempt.decided["payload"] or b"")
            if attempt.doubtful:
                doubtful.add((request, round))
    for row in answers.evidence.rows("aos.results"):
        place = (row["request_id"], row["round"])
        payload = row["payload"] or b""
        if row["status"] == "ok" and place not in doubtful and payload not in made[place]:
            yield f"{row['id']} ended with {payload[:40]!r}, which no first valid answer said"


def rest_is_recorded(answers: Answers) -> Iterator[str]:
    """Every answer that does not count is kept as experience of kind ignored."""
    names = ("request_id", "step", "attempt", "agent")
    kept = {
        tuple(row[name] for name in names)
        for row in answers.evidence.rows("aos.experiences")
        if row["kind"] == "ignored"
    }
    for row in answers.uncounted:
        if tuple(row[name] for name in names) not in kept:
            yield (
                f"an answer of {row['agent']} to {row['request_id'].hex()} step {row['step']} attempt "
                f"{row['attempt']} did not count and is recorded nowhere"
            )


def retries_wait(answers: Answers) -> Iterator[str]:
    """After a failure the next attempt waits 2, 4, 8 s (less the jitter) and goes to another agent."""
    for (request, _, step), attempts in answers.steps.items():
        failed: set[str] = set()
        tries = 0
        for attempt, later in pairwise(attempts):
            where = f"{request.hex()} step {step} attempt {later.number}"
            if attempt.doubtful:
                break
            if attempt.decided is not None and attempt.decided["status"] == "ok":
                yield f"{where} began after an answer that counted"
                continue
            if attempt.withdrawn is not None and attempt.decided is None:
                continue  # its agent was gone: somebody else at once
            failed.add(attempt.agent)
            least = attempt.over + WAITS_S[min(tries, len(WAITS_S) - 1)] * (1 - JITTER)
            tries += 1
            if later.began < least - EDGE_S:
                yield f"{where} began {least - later.began:.2f} s too early"
            if later.agent in failed:
                yield f"{where} went to {later.agent}, which had failed it"
