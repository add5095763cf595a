"""Suite agents: they never answer, answer wrongly, lie about themselves.

A rogue service works by order beside the load, whose requests it gets too. What may count, and when, is the judge's
law for all runs (`judge_answers`); here stands what only the fault itself can say: what it made the agents do.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from tests.chaos.asking import (
    LEDGER,
    RESULT,
    Row,
    agent,
    ask,
    assigned,
    named,
    not_ended,
    rogue,
    said,
    shouted,
    tails,
    withdraw,
    wrong_ends,
)
from tests.chaos.faults import Injected, inject_by
from tests.chaos.stand import Stand

LIMIT_S = 1.5  # an attempt of most rogues
WAITS_S = (2.0, 4.0, 8.0)
JITTER = 0.1
LATE_SHARE, LATE_S = 0.5, 5.0  # of a wait, and for the way through AOS on a busy machine
EDGE_S = 0.02
LAST_WORDS_S = 9.0  # a rogue's latest answer comes so long after its work
RECORDED_S = 60.0
LIES_S, LIES_MOST_S = 20.0, 240.0  # until the share has fallen; learning is slow where the machine is
CAPACITY_MOST = 100_000  # what a registration may claim
SHARE_MAX = 0.05  # of new assignments, when the liar is known
CODES = {
    "double": {"AOS3005", "AOS3006"},
    "late": {"AOS3005"},
    "forged": {"AOS3005", "AOS3007", "AOS3011"},
}


# 25: never an answer


def silent(stand: Stand, random: Random) -> Injected:
    """Fault 25: four agents that never answer are asked one after the other, and the request ends typed; where one of
    three answers it ends ok; the load meets one of them too."""
    began, name = time.time(), named(25, random)
    mute = [agent(f"{name}-mute{n}", "mute", f"{name}-all", timeout_ms=1500) for n in range(4)]
    mixed = [agent(f"{name}-mixed{n}", "mute", f"{name}-some", timeout_ms=1500) for n in range(2)]
    others = [
        agent(f"{name}-good", "good", f"{name}-some"),
        agent(f"{name}-crowd", "mute", "shout", timeout_ms=1500),
    ]
    with (
        rogue(stand, name, [*mute, *mixed, *others]),
        tails(stand, began, results=RESULT, ledger=LEDGER) as tail,
    ):
        wanted: list[tuple[Row, str | None]] = [({"require": [f"{name}-all"]}, None)] * 6
        ids = ask(stand, name, [*wanted, *shouted(name, 12, 6, require=[f"{name}-some"])])
        failed = not_ended(tail["results"], ids)
        ledger, results = tail["ledger"].read(), tail["results"].rows
    gaps: list[float] = []
    for id in ids[:6]:
        times, agents = assigned(ledger, id)
        gaps += [later - at for at, later in itertools.pairwise(times)]
        failed += [("I5", f"{id}: {what}") for what in misses(times, LIMIT_S)]
        if len(set(agents)) != len(agents):
            failed.append(("I5", f"{id} was tried by {agents}"))
        failed += [("I5", f"{id}: {what}") for what in wrong_ends(results, id, "AOS3002", 4)]
    crowd = sum(row["kind"] == "assigned" and row["agent"] == f"{name}-crowd" for row in ledger)
    detail = f"gaps between attempts {spread(gaps)} s; {crowd} attempts of the load met silence"
    return Injected(began, time.time(), name, failed=tuple(failed), detail=detail)


def misses(times: Sequence[float], limit_s: float) -> list[str]:
    """Where attempts that are never answered do not come after their time-out and 2, 4, 8 s, ±10 %."""
    found = []
    for number, (at, later) in enumerate(itertools.pairwise(times)):
        wait = WAITS_S[min(number, len(WAITS_S) - 1)]
        least = limit_s + wait * (1 - JITTER) - EDGE_S
        most = limit_s + wait * (1 + LATE_SHARE) + LATE_S
        if not least <= later - at <= most:
            found.append(f"attempt {number + 2} came after {later - at:.2f} s, not {least:.2f} to {most:.2f}")
    return found


def spread(values: Sequence[float]) -> str:
    """Least, middle and most."""
    ordered = sorted(values)
    if not ordered:
        return "none"
    return " / ".join(f"{value:.1f}" for value in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))


# 26: answers that may not count


def wrong_answers(stand: Stand, random: Random) -> Injected:
    """Fault 26: twice, late, after another was asked, with another's id, step, attempt, epoch, name or token."""
    began, name = time.time(), named(26, random)
    agents = [
        agent(f"{name}-twice", "twice", f"{name}-twice"), agent(f"{name}-then", "good", f"{name}-then"),
        agent(f"{name}-forge", "forge", f"{name}-forge"),
        *(agent(f"{name}-late{n}", "late", f"{name}-late", timeout_ms=1500) for n in range(2)),
        agent(f"{name}-good", "good", f"{name}-late"),
        *(agent(f"{name}-crowd-{manner}", manner, "shout", timeout_ms=1500) for manner in ("twice", "forge", "late")),
    ]  # fmt: skip
    flow = [
        {"name": "a", "require": [f"{name}-twice"]},
        {"name": "b", "require": [f"{name}-then"], "after": ["a"]},
    ]
    wanted = [
        *shouted(name, 8, 0, require=[f"{name}-twice"]), *shouted(name, 8, 8, require=[f"{name}-forge"]),
        *shouted(name, 16, 16, require=[f"{name}-late"]), *shouted(name, 4, 32, steps=flow),
    ]  # fmt: skip
    kept = ("kind", "request_id", "step", "attempt", "agent", "code")
    with rogue(stand, name, agents), tails(stand, began, results=RESULT, experiences=kept) as tail:
        failed = not_ended(tail["results"], ask(stand, name, wanted))
        withdraw(stand, name, agents)
        time.sleep(LAST_WORDS_S)  # what was asked last is answered late
        wrong = [row for row in said(stand, name) if row["label"] != "right"]
        tail["experiences"].until(lambda rows: not unrecorded(wrong, rows), RECORDED_S)
        failed += [("I5", what) for what in unrecorded(wrong, tail["experiences"].rows)]
    counts = Counter(row["label"].split()[0] for row in wrong)
    failed += [("I5", f"no answer was {label}: nothing is proven") for label in CODES if not counts[label]]
    detail = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    return Injected(
        began, time.time(), name, failed=tuple(failed), detail=f"{detail}, all recorded and ignored"
    )


def unrecorded(wrong: Iterable[Row], experiences: Iterable[Row]) -> list[str]:
    """Wrong answers that are not kept as ignored with a code that fits what was wrong with them."""
    kept: dict[tuple[str, int, int, str], set[str]] = {}
    for row in experiences:
        if row["kind"] == "ignored":
            place = (row["request_id"].hex(), row["step"], row["attempt"], row["agent"])
            kept.setdefault(place, set()).add(row["code"])
    found = []
    for row in wrong:
        codes = kept.get((row["request_id"], row["step"], row["attempt"], row["agent"]), set())
        if not codes & CODES[row["label"].split()[0]]:
            found.append(
                f"{row['label']}: {row['agent']} to {row['request_id']}, recorded as {sorted(codes)}"
            )
    return found


# 27: lies about oneself


def liars(stand: Stand, random: Random) -> Injected:
    """Fault 27: an agent that fails at all it gets says that it is idle, from a clock a century ahead, with room for
    100,000; one that claims 10^9 is refused; one that never answers says that it is idle, and has two slots."""
    began, name = time.time(), named(27, random)
    liar, boaster, hoarder = f"{name}-liar", f"{name}-boaster", f"{name}-hoarder"
    agents = [
        agent(liar, "fail", "shout", capacity=CAPACITY_MOST),
        agent(hoarder, "mute", f"{name}-some", capacity=2, timeout_ms=1500),
        agent(
            f"{name}-good", "good", f"{name}-some", capacity=2
        ),  # no more than the hoarder: that one is asked too
    ]
    boast = {"agent": boaster, "capabilities": ["shout"], "capacity": 10**9}
    beat = {"busy": 0, "sent_at": "2126-01-01T00:00:00Z"}
    decision = ("kind", "task_kind", "attempt", "agent")
    with (
        rogue(stand, name, agents, refused=[boast], beat=beat),
        tails(
            stand,
            began,
            results=RESULT,
            ledger=LEDGER,
            decisions=decision,
            dead_letters=("topic", "code", "body"),
        ) as tail,
    ):
        failed = not_ended(tail["results"], ask(stand, name, shouted(name, 12, 0, require=[f"{name}-some"])))
        time.sleep(LIES_S)
        tail["decisions"].until(lambda rows: not still_trusted(shares(rows, liar)), LIES_MOST_S)
        decisions, ledger = tail["decisions"].rows, tail["ledger"].read()
        letters = [row for row in tail["dead_letters"].read() if boaster.encode() in (row["body"] or b"")]
    if [row["code"] for row in letters] != ["AOS1014"]:
        failed.append(("I9", f"a capacity of 10^9 is answered by {letters}, not by one dead letter AOS1014"))
    if any(row["agent"] == boaster for row in decisions):
        failed.append(("I9", "the agent with a capacity of 10^9 was given work"))
    parts = shares(decisions, liar)
    failed += [("I9", what) for what in still_trusted(parts)]
    open_ = most_open(
        [row["_at"] for row in ledger if row["kind"] == "assigned" and row["agent"] == hoarder], LIMIT_S
    )
    if open_ > 2:
        failed.append(("I9", f"an agent of capacity 2 that says it is idle held {open_} attempts"))
    told = ", ".join(f"{asked} of {count}" for asked, count in parts)
    detail = f"the liar's share by thirds of its time: {told}; the hoarder held {open_}"
    return Injected(began, time.time(), liar, failed=tuple(failed), detail=detail)


def shares(decisions: Iterable[Row], liar: str) -> list[tuple[int, int]]:
    """How many first attempts of the crowd's work the liar got, of how many, in each third since its first one."""
    rows = [
        row for row in decisions
        if row["kind"] == "assigned" and row["task_kind"] == "shout" and row["attempt"] == 1
    ]  # fmt: skip
    times = [row["_at"] for row in rows if row["agent"] == liar]
    if not times:
        return []
    first, last = min(times), max(row["_at"] for row in rows)
    third = (last - first) / 3 or 1.0
    found = []
    for number in range(3):
        low, high = first + number * third, first + (number + 1) * third
        inside = [row for row in rows if low <= row["_at"] and (row["_at"] < high or number == 2)]
        found.append((sum(row["agent"] == liar for row in inside), len(inside)))
    return found


def still_trusted(parts: Sequence[tuple[int, int]]) -> list[str]:
    """What is wrong with the liar's share: it must fall, to next to nothing in the last third."""
    if not parts or parts[0][0] < 3 or parts[-1][1] < 20:
        return [f"the liar was hardly asked, nothing is proven: {list(parts)}"]
    first, last = (asked / count for asked, count in (parts[0], parts[-1]))
    if last >= first or last > SHARE_MAX:
        return [f"the liar's share of new assignments went from {first:.0%} to {last:.0%}"]
    return []


def most_open(times: Iterable[float], limit_s: float) -> int:
    """The most attempts that were open at once, of one that never answers."""
    began = sorted(times)
    return max((sum(at <= one < at + limit_s - EDGE_S for at in began) for one in began), default=0)


inject_by(25, silent)
inject_by(26, wrong_answers)
inject_by(27, liars)
