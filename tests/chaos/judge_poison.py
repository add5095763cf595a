"""What must have become of poison: a dead letter with its place and bytes, a typed result, or an error to its sender.

Reads the list the fault wrote (`poison.ndjson`, see faults_poison_kit.py) and the topics. Imports nothing of AOS.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.judge_read import Evidence, Row, tenant_of

LETTER, REFUSED, ANSWERED, AGAIN = "letter", "refused", "answered", "again"
RISE_MAX = 256 << 20
LATE_S = 5.0  # what was decided before a result may be written after it

Place = tuple[str, int, int]  # topic, partition, offset


def read_poison(folder: Path) -> list[Row]:
    """The list, one row a message with the state it ended in; a line cut short counts as never written."""
    path = folder / "poison.ndjson"
    found: dict[str, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.setdefault(row["n"], {}).update(row)
    return list(found.values())


def place_of(row: Row) -> Place:
    return row["topic"], row["partition"], row["offset"]


def hostile(poison: list[Row]) -> dict[Place, Row]:
    """Messages in the logs that the judge itself must not try to read."""
    return {place_of(row): row for row in poison if row["state"] == "acknowledged" and not row["plain"]}


def poison_ends(evidence: Evidence) -> Iterator[str]:
    """I1: no poison vanishes: each ended as its line says it must."""
    letters: defaultdict[Place, list[Row]] = defaultdict(list)
    for letter in evidence.rows("aos.dead-letters"):
        letters[letter["topic"], letter.get("partition", -1), letter.get("offset", -1)].append(letter)
    results: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in evidence.rows("aos.results"):
        results[tenant_of(row["_topic"], "aos.results"), row["id"] or ""].append(row)
    for row in evidence.poison:
        name = f"poison {row['n']} ({row['what']}, {row['topic']})"
        if row["state"] == "refused":
            if not row["error"]:
                yield f"{name} was refused without a word"
            elif row["must"] in (ANSWERED, AGAIN):
                yield f"{name} was refused: {row['error']}"
        elif row["state"] != "acknowledged":
            yield f"{name}: its sender heard nothing"
        else:
            mine = results[row["tenant"], row["id"]] if row["id"] is not None else []
            yield from (f"{name} {wrong}" for wrong in _wrong(row, letters[place_of(row)], mine))


def _wrong(row: Row, letters: list[Row], results: list[Row]) -> Iterator[str]:
    """What is wrong with the end of one acknowledged message."""
    if row["must"] == ANSWERED:
        if not any(one["status"] == "ok" for one in results):
            yield "was not answered"
    elif row["must"] == AGAIN:
        if len(results) < 2:
            yield f"was asked again and has {len(results)} result rows"
    elif row["must"] == REFUSED and not letters:
        if not results:
            yield "vanished: no dead letter and no result"
        yield from (
            f"ended {one['status']} ({one['code']})"
            for one in results
            if one["status"] == "ok" or not str(one["code"]).startswith("AOS")
        )
    else:
        yield from _letters(row, letters)


def _letters(row: Row, letters: list[Row]) -> Iterator[str]:
    """A dead letter of every reader, with a code and the original bytes."""
    by = {letter["processor"] for letter in letters}
    yield from (f"has no dead letter of {reader}" for reader in row["readers"] if reader not in by)
    for reader in row["readers"]:
        mine = [letter for letter in letters if letter["processor"] == reader]
        if not mine:
            continue
        if not all(str(letter["code"]).startswith("AOS") for letter in mine):
            yield "has a dead letter without a code"
        if not row["packed"] and not any(_is_whole(letter, row) for letter in mine):
            yield f"has no dead letter of {reader} with its bytes"


def _is_whole(letter: Row, row: Row) -> bool:
    """Whether a letter has the first 64 KiB of the message, and its size."""
    body = hashlib.sha256(letter["body"] or b"").hexdigest()
    return bool(body == row["digest"] and letter["body_size"] == row["size"])


def nobody_died(evidence: Evidence) -> Iterator[str]:
    """I10: no process ended because of poison, and no memory rose with it."""
    for note in evidence.noted("poisoned"):
        for name, count in note["restarts"].items():
            if count:
                yield f"fault {note['number']}: {name} ended {count} times"
        for name, rise in note["rise"].items():
            if rise > RISE_MAX:
                yield f"fault {note['number']}: {name} rose by {rise >> 20} MiB, at most {RISE_MAX >> 20}"


def no_second_life(evidence: Evidence) -> Iterator[str]:
    """I1: a request that ended ok is never given out again: who asks again hears the same, and no agent works twice."""
    ended: dict[tuple[Any, ...], float] = {}
    for row in evidence.rows("aos.results"):
        if row["status"] == "ok":
            key = (row["request_id"], row["round"])
            ended[key] = min(row["_at"], ended.get(key, row["_at"]))
    seen: set[tuple[Any, ...]] = set()
    rounds: Counter[tuple[Any, ...]] = Counter()
    for row in evidence.rows("aos.ledger"):
        key, attempt = (row["request_id"], row["round"]), (row["step"], row["attempt"])
        if row["kind"] != "assigned" or (*key, *attempt) in seen:
            continue
        seen.add((*key, *attempt))
        if row["_at"] > ended.get(key, math.inf) + LATE_S:
            rounds[key] += 1
    for (request, round), count in rounds.items():
        yield f"{request.hex()} round {round} ended and was assigned {count} times anew"


LAWS: tuple[tuple[str, Callable[[Evidence], Iterator[str]]], ...] = (
    ("I1", poison_ends),
    ("I1", no_second_life),
    ("I10", nobody_died),
)


def figures(evidence: Evidence) -> dict[str, Any]:
    """Poison by fault: how many messages were taken and refused, and how many dead letters there are."""
    found: dict[str, Any] = {}
    for row in evidence.poison:
        mine = found.setdefault(str(row["fault"]), Counter())
        mine[row["state"]] += 1
        mine[f"must be {row['must']}" if row["must"] != LETTER else "must be a dead letter"] += 1
    return {**found, "dead_letters": len(evidence.rows("aos.dead-letters"))}
