"""Faults of the network, by toxic proxies: slow, narrow, sliced, reset and half-open links; a worker cut off."""

from __future__ import annotations

import time
from random import Random

from tests.chaos.faults import Injected, inject_by
from tests.chaos.proxy import WAYS, Toxic
from tests.chaos.stand import LINK_CLIENTS, TO_DATABASE, Stand

LINKS = frozenset({"links"})
TO_BROKER = [f"{client}->broker" for client in LINK_CLIENTS]
MEGABIT = 125_000.0  # bytes a second
# longer than a session (10 s) plus a heartbeat: who is cut off that long is taken for dead
CUT_S = 13.0
HALF_OPEN_S = 8.0


def spoil(stand: Stand, random: Random) -> Injected:
    """Fault 16: one trouble after the other, in an order of the seed's, each healed before the next."""
    began, said = time.time(), []
    troubles = [slow, narrow, sliced, resets, half_open]
    random.shuffle(troubles)
    try:
        for trouble in troubles:
            said.append(trouble(stand, random))
            stand.proxy.heal()
            time.sleep(1.0)
    finally:
        stand.proxy.heal()
    accepted = sum(seen["accepted"] for seen in stand.proxy.stats().values())
    detail = f"{'; '.join(said)}; {accepted} connections in all"
    return Injected(began, time.time(), "all links", outage=HALF_OPEN_S, detail=detail)


def slow(stand: Stand, random: Random) -> str:
    for link in [*TO_BROKER, TO_DATABASE]:
        stand.proxy.set(link, Toxic(latency_s=0.2, jitter_s=0.1))
    time.sleep(5)
    return "200±100 ms each way, 5 s"


def narrow(stand: Stand, random: Random) -> str:
    for link in [*TO_BROKER, TO_DATABASE]:
        stand.proxy.set(link, Toxic(bytes_per_s=MEGABIT))
    time.sleep(5)
    return "1 Mbit/s, 5 s"


def sliced(stand: Stand, random: Random) -> str:
    link = random.choice(TO_BROKER)
    stand.proxy.set(link, Toxic(slice_bytes=1))
    time.sleep(4)
    return f"slices of 1 byte on {link}, 4 s"


def resets(stand: Stand, random: Random) -> str:
    count = 0
    for _ in range(4):
        time.sleep(random.uniform(0.3, 1.0))
        count += stand.proxy.reset()
    return f"{count} connections reset"


def half_open(stand: Stand, random: Random) -> str:
    """The other end is gone without a word, one way; what was sent meanwhile never arrives."""
    link, way = random.choice(TO_BROKER), random.choice(WAYS)
    stand.proxy.set(link, Toxic(swallow=True), [way])
    time.sleep(HALF_OPEN_S)
    return f"half-open {way} {link}, {HALF_OPEN_S:.0f} s"


def cut_off(stand: Stand, random: Random) -> Injected:
    """Fault 17: a worker sees the database and not the broker, then the reverse, then only hears or only speaks."""
    began = time.time()
    worker = random.choice(["worker-edge->broker", "worker-core->broker"])
    cuts = [
        ("worker-keeping->broker", WAYS, CUT_S),
        (TO_DATABASE, WAYS, CUT_S),
        (worker, (random.choice(WAYS),), HALF_OPEN_S),
    ]
    random.shuffle(cuts)
    said = []
    try:
        for link, ways, seconds in cuts:
            stand.proxy.set(link, Toxic(stall=True), ways)
            time.sleep(seconds)
            stand.proxy.heal(link)
            said.append(f"{link} {'both ways' if ways == WAYS else ways[0]} {seconds:.0f} s")
            time.sleep(2.0)
    finally:
        stand.proxy.heal()
    return Injected(began, time.time(), "links", outage=CUT_S, detail="; ".join(said))


inject_by(16, spoil, needs=LINKS)
inject_by(17, cut_off, needs=LINKS)
