"""The forty faults: what each is, which suite it belongs to, why it may matter, and what injects it.

The table is whole from the start: a fault that nobody has built, or that this machine cannot inject, says why and is
reported as not run. A module `faults_<suite>.py` gives a fault its hands with `inject_by`; `load_all` reads them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.stand import Stand

NOT_BUILT = "not built yet"
GATEWAY = "waits for the gateway"
SUITES = (
    "kill", "broker", "database", "network", "resources", "poison", "agents", "tenants", "upgrade", "config",
)  # fmt: skip
# without --suite, and in `make test`: of each suite what needs no minutes, no links and no flood
QUICK = (1, 2, 3, 5, 6, 20, 21, 22, 23, 24, 29, 32, 33)


@dataclass(frozen=True)
class Injected:
    """What an injection did, by the clock of the machine (time.time(), seconds).

    `began`: it took hold; `healed`: the last of it was undone (of a kill: the moment of the kill itself).
    `kills`: processes that were killed with work in hand. `expects`: rows that must be dead letters, by id of the
    message's place or of the row; `sends`: ids of requests the fault itself sent (they stand in the journal too).
    `failed`: what the fault itself saw go wrong; it counts as a violation of `invariant`.
    `outage`: seconds in which nothing could complete; the backlog must be drained within twice that.
    `target`: the process or link it hit, as `Stand` names it.
    """

    began: float
    healed: float
    target: str = ""
    kills: int = 0
    outage: float = 0.0
    recovery_limit_s: float = 30.0
    detail: str = ""
    failed: tuple[tuple[str, str], ...] = ()  # (invariant, what was seen)


Inject = Callable[["Stand", Random], Injected]


def no_hands(stand: Stand, random: Random) -> Injected:
    """Stands where nobody has built the injection; `missing` keeps it from being called."""
    raise NotImplementedError(NOT_BUILT)


@dataclass(frozen=True)
class Fault:
    """One row of the matrix. `missing` says why this machine, or this release, cannot inject it; None when it can."""

    number: int
    name: str
    suite: str
    why: str
    inject: Inject = field(default=no_hands, repr=False)
    missing: Callable[[], str | None] = field(default=lambda: NOT_BUILT, repr=False)
    # what the stand must have before it starts: "links" (toxic proxies), "secure" (users and TLS), …
    needs: frozenset[str] = frozenset()
    waits: str = ""  # what of the row is not tried, and what it waits for; it stands in the table


MATRIX: tuple[tuple[int, str, str, str], ...] = (
    (1, "SIGKILL of a worker", "kill", "a process may end between any two instructions"),
    (2, "SIGKILL of the store before, in and after COMMIT", "kill", "an answer to COMMIT may never come"),
    (3, "SIGKILL of all workers at once", "kill", "a lost host takes all with it"),
    (4, "SIGKILL of the broker, away 3 s and 40 s", "broker", "producers must buffer, nobody may forget"),
    (5, "clean restart of the broker", "broker", "an upgrade of the broker happens under load"),
    (6, "SIGKILL of the database under load", "database", "commits of unknown end"),
    (7, "database away for 60 s", "database", "routing must not need SQL"),
    (8, "database slow: latency and a locked table", "database", "slowness must become back-pressure"),
    (9, "broker's disk full", "resources", "the broker halts on ENOSPC"),
    (10, "database's disk full", "resources", "an error on data, a panic on the write-ahead log"),
    (11, "worker's disk full", "resources", "a snapshot half written must not be believed"),
    (12, "worker stopped longer than its session, then woken", "resources", "who was replaced must not write"),
    (13, "rebalance storm", "resources", "members come and go faster than work"),
    (14, "CPU starved", "resources", "slow must not look like dead"),
    (15, "out of memory", "resources", "one record must not kill for ever"),
    (16, "slow, narrow, sliced, reset and half-open network", "network", "time-outs must fire, retries be harmless"),
    (17, "partition of a worker from broker or database", "network", "no split brain"),
    (18, "input three times, reordered, replayed", "agents", "what comes twice counts once"),
    (19, "clocks that lie or jump", "resources", "time must come from the log"),
    (20, "poison: bytes that are no records", "poison", "one message must not stop a partition"),
    (21, "poison: tensors that lie", "poison", "shapes and strides are an attacker's tools"),
    (22, "bombs: small messages that grow", "poison", "limits must hold before decoding"),
    (23, "every codec of the broker", "poison", "a batch nobody can unpack kills again and again"),
    (24, "oversize messages", "poison", "a clear error, never a silent drop"),
    (25, "an agent never answers", "agents", "work must find another agent in time"),
    (26, "answers that are late, double or another's", "agents", "the first valid one wins"),
    (27, "heartbeats that lie", "agents", "trust what was observed"),
    (28, "one agent twice", "agents", "the newer epoch wins"),
    (29, "a tenant claims to be another", "tenants", "whose a row is follows from its topic"),
    (30, "a noisy tenant", "tenants", "its backlog must be its own"),
    (31, "two versions side by side", "upgrade", "a rolling upgrade under load"),
    (32, "settings rolled back under load", "config", "a bad setting must be undone in seconds"),
    (33, "damaged snapshots", "upgrade", "state that lies must be refused"),
    (34, "topics deleted, recreated, grown, cut short", "upgrade", "alarm and stop, never skip in silence"),
    (35, "credentials wrong, rotated, revoked", "config", "no restart to recover"),
    (36, "certificates expired, wrong, rotated", "config", "refused at the handshake"),
    (37, "the gateway under slow and idle clients", "tenants", "clients must not hold the pipeline"),
    (38, "a second owner of timers", "agents", "a retry fires once"),
    (39, "SQL rebuilt from the logs", "database", "the log is the truth"),
    (40, "two or three faults at once", "network", "what holds alone may not hold together"),
)  # fmt: skip

REGISTRY: dict[int, Fault] = {
    number: Fault(
        number, name, suite, why, missing=(lambda: GATEWAY) if number == 37 else (lambda: NOT_BUILT)
    )
    for number, name, suite, why in MATRIX
}


def possible() -> str | None:
    """Nothing is missing."""
    return None


def inject_by(
    number: int,
    inject: Inject,
    *,
    missing: Callable[[], str | None] = possible,
    needs: frozenset[str] = frozenset(),
    waits: str = "",
) -> None:
    """Give a fault its hands; ValueError for one that has some (two modules would build the same)."""
    fault = REGISTRY[number]
    if fault.inject is not no_hands:
        raise ValueError(f"fault {number} is built twice")
    REGISTRY[number] = dataclasses.replace(fault, inject=inject, missing=missing, needs=needs, waits=waits)


def load_all() -> dict[int, Fault]:
    """Have every `faults_*.py` give its faults their hands; the registry, 40 rows."""
    from tests.chaos import (  # noqa: F401  (they import this module)
        faults_access,
        faults_agents,
        faults_broker,
        faults_combined,
        faults_config,
        faults_database,
        faults_kill,
        faults_network,
        faults_owners,
        faults_poison,
        faults_poison_again,
        faults_resources,
        faults_tenants,
        faults_upgrade,
    )

    return REGISTRY


def of_suite(suite: str) -> list[int]:
    """Numbers of a suite, of `quick` or of `all`, in the matrix's order; ValueError for another name."""
    if suite == "all":
        return [row[0] for row in MATRIX]
    if suite == "quick":
        return list(QUICK)
    if suite not in SUITES:
        raise ValueError(f"no suite {suite!r}: choose from {', '.join([*SUITES, 'quick', 'all'])}")
    return [row[0] for row in MATRIX if row[2] == suite]
