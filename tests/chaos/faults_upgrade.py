"""Suite upgrade: snapshots that are damaged or another's, and two releases beside each other."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from random import Random

from aos.streams.processor import Law
from aos.streams.topology import GROUPS, PROCESSORS
from tests.chaos import shelf
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import lines, log_size
from tests.chaos.shelf import Damage, Item, Key, Saved
from tests.chaos.stand import Stand

STOP_S = 60.0
SHELF_S = 60.0
KEPT = {name: processor for name, processor in PROCESSORS.items() if processor.dump is not None}


@dataclass(frozen=True)
class Plan:
    """What is done to one slot. `tried`: a worker looks at it at its start, and must refuse it."""

    place: Key
    damage: Damage
    written: list[Item]
    tried: bool


def planned(found: dict[Key, list[Saved]], random: Random) -> list[Plan]:
    """A damage for the newest slot of each processor, and for the other slot too of each second one: every kind of
    damage at least once, where there are enough slots."""
    newest: dict[tuple[str, int], list[Key]] = {}
    for place in sorted(found, key=lambda place: found[place][-1].rank, reverse=True):
        newest.setdefault(place[:2], []).append(place)
    owners = sorted(newest)
    random.shuffle(owners)
    both = owners[: (len(owners) + 1) // 2]
    places = [newest[owner][0] for owner in owners]
    places += [newest[owner][1] for owner in both if len(newest[owner]) > 1]
    kinds = list(shelf.DAMAGES)
    random.shuffle(kinds)
    plans = []
    for number, place in enumerate(places):
        damage = kinds[number % len(kinds)]
        whose = random.choice([other for other in owners if other != place[:2]] or owners)
        written = damage(place, found[place], found[newest[whose][0]][-1], random)
        plans.append(Plan(place, damage, written, damage is not shelf.old))
    return plans


def damaged(stand: Stand, random: Random) -> Injected:
    """Fault 33: while the workers are down, each state's newest snapshot is damaged, of half of them both.

    Each must be refused in its worker's log, nobody may die of it, and a fold's log must make the same bytes again.
    """
    began, failed = time.time(), []
    groups = [group for group, names in GROUPS.items() if set(names) & set(KEPT)]
    whole = _all_saved(stand)
    if not whole:
        return Injected(began, time.time(), failed=(("I9", f"no snapshot of each state in {SHELF_S:.0f} s"),))
    down = time.time()
    for group in groups:
        stand.up.stack.children.stop(f"worker-{group}-0", STOP_S)
    found = shelf.shelf(stand)
    plans = planned(found, random)
    shelf.put(stand, [one for plan in plans for one in plan.written])
    marks = {group: log_size(stand, f"worker-{group}-0") for group in groups}
    for group in groups:
        stand.up.start_worker(group)
    ready = stand.wait_ready()
    healed = time.time()
    for group in groups:
        worker = f"worker-{group}-0"
        if not ready or stand.up.stack.children.restarts(worker):
            failed.append(
                ("I10", f"{worker} did not start with damaged snapshots: {lines(stand, worker, '.')[-1:]}")
            )
        for plan in plans:
            if (
                plan.tried
                and plan.place[0] in GROUPS[group]
                and not _refused(stand, worker, plan, marks[group])
            ):
                failed.append(("I9", f"{plan.damage.__name__} of {plan.place}: not refused in its log"))
    again = [name for name in _folds(found) if not _same(stand, name, found)]
    failed += [("I9", f"the log of {name} does not make the bytes of its snapshot") for name in again]
    said = ", ".join(f"{plan.damage.__name__} {plan.place[0]}/{plan.place[2]}" for plan in plans)
    detail = f"{said}; made again byte for byte from the log: {', '.join(_folds(found))}"
    return Injected(
        began, healed, ", ".join(groups), outage=healed - down, failed=tuple(failed), detail=detail
    )  # fmt: skip


def _all_saved(stand: Stand) -> bool:
    """Wait until every processor with a state has a snapshot in both slots."""
    ends = time.monotonic() + SHELF_S
    while time.monotonic() < ends:
        there = shelf.shelf(stand)
        if all((name, 0, slot) in there for name in KEPT for slot in (0, 1)):
            return True
        time.sleep(1.0)
    return False


def _refused(stand: Stand, worker: str, plan: Plan, after: int) -> bool:
    processor, partition, slot = plan.place
    pattern = f"AOS9002: snapshot of {processor}/{partition}, slot {slot} is refused: "
    return bool(lines(stand, worker, re.escape(pattern), after))


def _folds(found: dict[Key, list[Saved]]) -> list[str]:
    """Folds of which a snapshot was found."""
    named = {place[0] for place in found}
    return [name for name, one in KEPT.items() if one.law is Law.FOLD and name in named]


def _same(stand: Stand, name: str, found: dict[Key, list[Saved]]) -> bool:
    """Whether the log makes the newest snapshots of a fold again."""
    newest: dict[int, Saved] = {}
    for (processor, partition, _), versions in found.items():
        if processor == name and (partition not in newest or versions[-1].rank > newest[partition].rank):
            newest[partition] = versions[-1]
    return all(shelf.made_again(stand, KEPT[name], partition, saved) for partition, saved in newest.items())


inject_by(33, damaged)
