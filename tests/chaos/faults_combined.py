"""Two or three faults at once, drawn by the seed from those that can overlap; then links that stop one by one."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from random import Random

from tests.chaos.faults import Injected, inject_by
from tests.chaos.proxy import Toxic
from tests.chaos.stand import LINK_CLIENTS, TO_DATABASE, Stand

LINKS = [*(f"{client}->broker" for client in LINK_CLIENTS), TO_DATABASE]
HOLD_S = (3.0, 7.0)  # all of them at once
PAUSE_S = (0.2, 1.5)  # between two that begin or heal
CLOG_S = (0.5, 1.5)

Heal = Callable[[], str]  # undoes a trouble; says what it was
Begin = Callable[[Stand, Random], Heal]


def database_away(stand: Stand, random: Random) -> Heal:
    stand.kill_database()

    def heal() -> str:
        stand.start_database()
        return "database away"

    return heal


def broker_away(stand: Stand, random: Random) -> Heal:
    stand.kill_broker()

    def heal() -> str:
        stand.start_broker()
        return "broker away"

    return heal


def links_slow(stand: Stand, random: Random) -> Heal:
    for link in LINKS:
        stand.proxy.set(link, Toxic(latency_s=0.1, jitter_s=0.05))

    def heal() -> str:
        stand.proxy.heal()
        return "all links slow"

    return heal


def link_stalled(stand: Stand, random: Random) -> Heal:
    link = random.choice(LINKS)
    stand.proxy.set(link, Toxic(stall=True))

    def heal() -> str:
        stand.proxy.heal(link)
        return f"{link} stalled"

    return heal


def worker_killed(stand: Stand, random: Random) -> Heal:
    """With work in hand where somebody has some; it comes again by itself."""
    names = stand.workers()
    random.shuffle(names)
    hit = next((name for name in names if stand.kill(name)), "")
    if not hit:
        stand.kill_now(names[:1], [])
    return lambda: f"{hit or names[0]} killed{'' if hit else ' without work in hand'}"


def agents_stopped(stand: Stand, random: Random) -> Heal:
    name = f"service-{random.choice(stand.services)}"
    stand.signal(name, signal.SIGSTOP)

    def heal() -> str:
        stand.signal(name, signal.SIGCONT)
        return f"{name} stopped"

    return heal


# of each group one at most: those of one group would undo each other
GROUPS: tuple[tuple[Begin, ...], ...] = (
    (worker_killed,), (database_away,), (broker_away,), (links_slow, link_stalled), (agents_stopped,),
)  # fmt: skip


def drawn(random: Random) -> list[Begin]:
    """Two or three troubles in the order in which they begin. A kill with work in hand needs a broker to prove it."""
    chosen = [random.choice(group) for group in random.sample(GROUPS, random.choice((2, 3)))]
    return sorted(chosen, key=lambda begin: begin is not worker_killed)


def together(stand: Stand, random: Random) -> Injected:
    """Fault 40: two or three at once, healed in another order; then all links stop one by one and heal in an order of
    their own (swizzle-clog)."""
    began, kills = time.time(), stand.kills
    healing: list[Heal] = []
    said: list[str] = []
    try:
        for begin in drawn(random):
            healing.append(begin(stand, random))
            time.sleep(random.uniform(*PAUSE_S))
        time.sleep(random.uniform(*HOLD_S))
    finally:
        random.shuffle(healing)
        for heal in healing:
            said.append(heal())
            time.sleep(random.uniform(*PAUSE_S))
    ready = stand.wait_ready()
    said.append(clogged(stand, random))
    healed = time.time()
    failed = () if ready else (("I10", f"not all workers came back after {', '.join(said)}"),)
    detail = f"{' with '.join(said[:-1])}; then {said[-1]}"
    return Injected(
        began, healed, "several", kills=stand.kills - kills, outage=healed - began, failed=failed, detail=detail
    )  # fmt: skip


def clogged(stand: Stand, random: Random) -> str:
    """Swizzle-clog of all links."""
    links = list(LINKS)
    random.shuffle(links)
    try:
        for link in links:
            stand.proxy.set(link, Toxic(stall=True))
            time.sleep(random.uniform(*CLOG_S))
        random.shuffle(links)
        for link in links:
            stand.proxy.heal(link)
            time.sleep(random.uniform(*CLOG_S))
    finally:
        stand.proxy.heal()
    return f"{len(links)} links stopped one by one and healed in the order {', '.join(links)}"


inject_by(40, together, needs=frozenset({"links"}))
