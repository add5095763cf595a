"""Suite agents, what exists twice: one agent in two processes and in two services; the timers, with two owners."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from aos.infra.settings import environment
from aos.infra.up import outside
from aos.streams.topology import GROUPS
from tests.chaos.asking import (
    LEDGER,
    RESULT,
    Failed,
    Row,
    Tail,
    agent,
    ask,
    assigned,
    known,
    named,
    not_ended,
    request_of,
    rogue,
    shouted,
    tails,
    wrong_ends,
)
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import lines, log_size
from tests.chaos.stand import ROOT, Stand

CORE = "worker-core-0"
STOPPED_S = 14.0  # longer than a session
WOKEN_S = 8.0
PROBES = 30
FENCED = r"[Ff]enced|UnknownMember|IllegalGeneration|session expired|taken over|unacknowledged"


# 28: one agent twice


def doubled(stand: Stand, random: Random) -> Injected:
    """Fault 28: two processes that play one agent both answer everything; then another service registers the agent:
    from then on the newer service alone gets its work."""
    began, name = time.time(), named(28, random)
    one = agent(f"{name}-it", "good", f"{name}-it")
    where = f"{name}-it"
    with (
        rogue(stand, f"{name}a", [one], service=name, tag="#a", group=f"{name}a"),
        rogue(stand, f"{name}b", [one], service=name, tag="#b", group=f"{name}b", waits=False),
        tails(stand, began, results=RESULT, ledger=LEDGER) as tail,
    ):
        time.sleep(3.0)  # both have the inbox
        ids = ask(stand, f"{name}a", [({"require": [where]}, None)] * 20)
        failed = not_ended(tail["results"], ids)
        both = tail["ledger"]
        both.until(lambda rows: answers_to(rows, ids) >= 2 * len(ids), 30)
        failed += done_twice(tail["results"].rows, both.rows, ids)
        with rogue(stand, f"{name}c", [one], service=f"{name}c", tag="#c"):
            known(stand, began, {(f"{name}c", where)})
            if not newer_has_work(stand, f"{name}c", where, both):
                failed.append(("I5", f"the newer service got no work {PROBES} s after it had registered"))
            late = ask(stand, f"{name}c", [({"require": [where]}, None)] * 20)
            failed += not_ended(tail["results"], late)
            services = Counter(one for id in late for one in services_of(both.read(), id))
    if set(services) != {f"{name}c"}:
        failed.append(("I5", f"after the second registration work went to {dict(services)}"))
    detail = f"{answers_to(both.rows, ids)} answers to {len(ids)} requests; afterwards work went to {dict(services)}"
    return Injected(began, time.time(), where, failed=tuple(failed), detail=detail)


def newer_has_work(stand: Stand, service: str, capability: str, ledger: Tail) -> bool:
    """Ask now and then until the service is assigned something; False when it never is.

    What is matched after that has the new service too: there is one matcher, and it reads on.
    """
    for number in range(PROBES):
        ask(stand, f"{service}-probe{number}", [({"require": [capability]}, None)])
        time.sleep(1.0)
        if any(row["service"] == service and row["kind"] == "assigned" for row in ledger.read()):
            return True
    return False


def answers_to(ledger: Sequence[Row], ids: Sequence[str]) -> int:
    """How many final answers the ledger has to these requests."""
    wanted = {request_of(ledger, id) for id in ids}
    return sum(row["kind"] == "outcome" and row["request_id"] in wanted for row in ledger)


def done_twice(results: Sequence[Row], ledger: Sequence[Row], ids: Sequence[str]) -> Failed:
    """Requests that both copies worked on and that show it: two ends, more than one attempt, another's payload."""
    failed: Failed = []
    if answers_to(ledger, ids) < 2 * len(ids):
        failed.append(
            ("I5", f"only {answers_to(ledger, ids)} answers to {len(ids)} requests: nothing is proven")
        )
    for id in ids:
        ends = {(row["status"], row["payload"], row["attempts"]) for row in results if row["id"] == id}
        allowed = {f"{id.upper()}{tag}".encode() for tag in ("#a", "#b")}
        for status, payload, attempts in ends:
            if status != "ok" or payload not in allowed:
                failed.append(("I1", f"{id} ended {status} with {payload!r}"))
            if attempts != 1:
                failed.append(("I5", f"{id} took {attempts} attempts"))
        if len(ends) > 1:
            failed.append(("I1", f"{id} ended {len(ends)} times"))
    return failed


def services_of(ledger: Sequence[Row], id: str) -> list[str]:
    """Which services a request's attempts were assigned to."""
    request = request_of(ledger, id)
    return [row["service"] for row in ledger if row["kind"] == "assigned" and row["request_id"] == request]


# 38: two owners of timers


def two_owners(stand: Stand, random: Random) -> Injected:
    """Fault 38: supervise is stopped while attempts run and retries wait, a second one of the same ordinal takes its
    partitions, then the first wakes up: each time-out and retry happens once."""
    began, name = time.time(), named(38, random)
    mute = [agent(f"{name}-mute{n}", "mute", f"{name}-all", timeout_ms=1500) for n in range(4)]
    mixed = [agent(f"{name}-mixed{n}", "mute", f"{name}-some", timeout_ms=1500) for n in range(2)]
    agents = [*mute, *mixed, agent(f"{name}-good", "good", f"{name}-some")]
    with rogue(stand, name, agents), tails(stand, began, results=RESULT, ledger=LEDGER) as tail:
        wanted: list[tuple[Row, str | None]] = [({"require": [f"{name}-all"]}, None)] * 10
        ids = ask(stand, name, [*wanted, *shouted(name, 20, 10, require=[f"{name}-some"])])
        tail["ledger"].until(lambda rows: any(row["agent"] == f"{name}-mute0" for row in rows), 30)
        mark, stopped = log_size(stand, CORE), time.time()
        second = take_over(stand)
        woken = time.time()
        failed: Failed = []
        if not second:
            failed.append(("I10", "the second owner was never ready"))
        time.sleep(WOKEN_S)
        stand.up.stack.children.stop("worker-core-0b", 30)
        healed = time.time()
        if not stand.wait_ready():
            failed.append(("I10", f"{CORE} is not ready after the second owner has gone"))
        failed += not_ended(tail["results"], ids)
        ledger, results = tail["ledger"].read(), tail["results"].rows
    for id in ids[:10]:
        failed += [("I5", f"{id}: {what}") for what in wrong_ends(results, id, "AOS3002", 4)]
    failed += [
        ("I1", f"{id} ended {count} times") for id, count in ends_of_each(results, ids).items() if count > 1
    ]
    retries = [at for id in ids for at in assigned(ledger, id)[0][1:]]
    meanwhile = sum(stopped <= at <= healed for at in retries)
    if not meanwhile:
        failed.append(("I5", "no retry was due while there were two owners: nothing is proven"))
    fenced = lines(stand, CORE, FENCED, mark)
    detail = (
        f"stopped {woken - stopped:.0f} s; {meanwhile} of {len(retries)} retries began with two owners; "
        f"{len(fenced)} lines say that the first was replaced"
    )
    # no outage to drain after: the second owner worked, and what was asked here ends by its time-outs, long afterwards
    return Injected(began, healed, CORE, failed=tuple(failed), detail=detail)


def take_over(stand: Stand) -> bool:
    """Stop the core worker, start another of its ordinal, wake the first; whether the second was ready meanwhile."""
    status = stand.folder / "data" / "worker-core-0b.json"
    status.unlink(missing_ok=True)
    stand.signal(CORE, signal.SIGSTOP)
    argv = [*stand.worker_program, "--ordinal", "0", "--processors", ",".join(GROUPS["core"])]
    stand.up.stack.children.spawn(
        "worker-core-0b", [*argv, "--status-file", str(status)],
        env={**outside(), **environment(stand.settings_by_link("worker-core"))},
        cwd=ROOT, log_path=stand.folder / "data" / "worker-core-0b.log",
    )  # fmt: skip
    ends, ready = time.monotonic() + STOPPED_S, False
    while time.monotonic() < ends or (not ready and time.monotonic() < ends + 30):
        ready = ready or (status.exists() and '"ready": true' in status.read_text())
        time.sleep(0.2)
    stand.signal(CORE, signal.SIGCONT)
    return ready


def ends_of_each(results: Iterable[Row], ids: Sequence[str]) -> dict[str, int]:
    """How many different ends each request has."""
    ends = {(row["id"], row["status"], row["code"], row["payload"]) for row in results}
    return {id: sum(one[0] == id for one in ends) for id in ids}


inject_by(28, doubled)
inject_by(38, two_owners)
