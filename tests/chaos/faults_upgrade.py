"""Suite upgrade: snapshots that are damaged or another's, and two releases beside each other."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from aos.streams.dead_letters import DEAD_LETTERS
from aos.streams.processor import Law
from aos.streams.topology import GROUPS, PROCESSORS
from tests.chaos import other_release, shelf
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import lines, log_size
from tests.chaos.shelf import Damage, Item, Key, Saved
from tests.chaos.stand import Stand

STOP_S = 60.0
SHELF_S = 60.0
BESIDE_S, UNKNOWN_S = 6.0, 4.0
PARKED_S = 30.0
LEDGER = "aos.ledger"
READERS = ("supervise", "store")  # of the ledger
# what several groups write, or another reads than writes: both releases must have written each
CROSSED = (LEDGER, "aos.tasks", "aos.matches", "aos.ready.p2", "aos.trails", "aos.experiences", "aos.beliefs")
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
        # an old snapshot is a good one: if it is the newer of the two all the same, nobody looks at the other
        beside_old = any(one.place[:2] == place[:2] and one.damage is shelf.old for one in plans)
        plans.append(Plan(place, damage, written, damage is not shelf.old and not beside_old))
    return plans


def damaged(stand: Stand, random: Random) -> Injected:
    """Fault 33: while the workers are down, each state's newest snapshot is damaged, of half of them both.

    Each must be refused in its worker's log, nobody may die of it, and the log must lead a fold from each older
    snapshot to the bytes of the newer.
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
    failed += [
        ("I9", f"the log of {name} does not lead from one snapshot to the bytes of the next")
        for name in again
    ]
    said = ", ".join(f"{plan.damage.__name__} {plan.place[0]}/{plan.place[2]}" for plan in plans)
    detail = f"{said}; byte for byte from snapshot to snapshot by the log: {', '.join(_folds(found))}"
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
    why = "it has other parts or columns" if plan.damage is shelf.of_another_release else "it is damaged"
    return bool(lines(stand, worker, re.escape(pattern + why), after))


def _folds(found: dict[Key, list[Saved]]) -> list[str]:
    """Folds of which a snapshot was found."""
    named = {place[0] for place in found}
    return [name for name, one in KEPT.items() if one.law is Law.FOLD and name in named]


def _same(stand: Stand, name: str, found: dict[Key, list[Saved]]) -> bool:
    """Whether the log makes the newest snapshot of a fold again from the one before it, in each partition."""
    for partition in range(stand.settings.partitions):
        slots = [versions[-1] for place, versions in found.items() if place[:2] == (name, partition)]
        slots.sort(key=lambda saved: saved.rank)
        if len(slots) > 1 and not shelf.made_again(stand, KEPT[name], partition, *slots[-2:]):
            return False
    return True


def side_by_side(stand: Stand, random: Random) -> Injected:
    """Fault 31: half of the workers of the next release, then the other half; then one of a release nobody knows.

    What the next one adds is ignored, what it reads of the older has nulls there; what the unknown one writes to the
    ledger is a dead letter of everybody who reads it, with its bytes.
    """
    began, failed, said = time.time(), [], []
    groups = list(GROUPS)
    random.shuffle(groups)
    marks = {name: shelf.end_of(stand, name) for name in CROSSED}
    for newer in (groups[:2], groups[2:]):
        failed += _run_as(stand, "newer", newer)
        time.sleep(BESIDE_S)
        sizes = {group: log_size(stand, f"worker-{group}-0") for group in newer}
        failed += _run_as(stand, "", newer)
        for group in newer:
            told = lines(
                stand, f"worker-{group}-0", "release .*read of the older release: [1-9].*written: [1-9]", 0
            )
            said.append(f"{group} newer: {told[-1].partition('release ')[2] if told else 'unheard'}")
            if not told:
                failed.append(
                    (
                        "I10",
                        f"the newer {group} met no older rows, or wrote none: {sizes[group]} bytes of log",
                    )
                )
    failed += [("I7", what) for what in _crossed(stand, marks)]
    mark = shelf.end_of(stand, LEDGER)
    down = time.time()
    failed += _run_as(stand, "unknown", ["edge"])
    time.sleep(UNKNOWN_S)
    failed += _run_as(stand, "", ["edge"])
    healed = time.time()
    count, lacking = _parked(stand, mark)
    failed += [("I1", what) for what in lacking]
    detail = (
        f"{'; '.join(said)}; {count} ledger messages of major version 2 parked by {' and '.join(READERS)}"
    )
    # answers that were parked are none: those attempts end by their time-out, and are made again
    outage = healed - down + stand.settings.timeout_ms / 1000
    return Injected(began, healed, "all workers", outage=outage, failed=tuple(failed), detail=detail)


def _run_as(stand: Stand, release: str, groups: Sequence[str]) -> list[tuple[str, str]]:
    """Stop workers in good order and start them as another release, or as today's; who did not come up."""
    for group in groups:
        name = f"worker-{group}-0"
        stand.up.stack.children.stop(name, STOP_S)
        stand.programs.pop(name, None)
        if release:
            stand.programs[name] = (sys.executable, "-m", "tests.chaos.other_release", "--as", release)
        stand.up.start_worker(group)
    if stand.wait_ready():
        return []
    return [("I10", f"{', '.join(groups)} did not start as {release or 'today'}")]


def _crossed(stand: Stand, marks: dict[str, int]) -> list[str]:
    """Topics on which not both releases have written since `marks`."""
    found = []
    for topic, mark in marks.items():
        versions = {
            dict(one.headers() or ())[wire.HEADER_VERSION] for one in shelf.log_of(stand, topic, 0, mark)
        }
        if len(versions) < 2:
            found.append(f"{topic} was written under {versions} alone")
    return found


def _parked(stand: Stand, mark: int) -> tuple[int, list[str]]:
    """How many messages of the unknown release the ledger has since `mark`, and whose dead letters lack which."""
    unknown = {
        one.offset(): one.value() for one in shelf.log_of(stand, LEDGER, 0, mark)
        if dict(one.headers() or ())[wire.HEADER_VERSION] == other_release.MAJOR
    }  # fmt: skip
    if not unknown:
        return 0, ["the unknown release wrote nothing to the ledger"]
    ends = time.monotonic() + PARKED_S
    while True:
        lacking = _lacking(stand, unknown)
        if not lacking or time.monotonic() > ends:
            return len(unknown), lacking
        time.sleep(1.0)


def _lacking(stand: Stand, unknown: dict[int, bytes]) -> list[str]:
    """Which of these messages of the ledger are no dead letter of a reader, or one with other bytes."""
    kept: dict[tuple[str, int], bytes] = {}
    for one in shelf.log_of(stand, DEAD_LETTERS):
        for row in wire.decode(one.value(), {}, RECORDS["dead-letter"]).to_pylist():
            if (row["topic"], row["code"]) == (LEDGER, "AOS1011"):
                kept[row["processor"], row["offset"]] = row["body"]
    return [
        f"{LEDGER}@{offset} is no dead letter of {reader} with its bytes"
        for reader in READERS for offset, value in unknown.items()
        if kept.get((reader, offset)) != value
    ]  # fmt: skip


inject_by(31, side_by_side)
inject_by(33, damaged)
