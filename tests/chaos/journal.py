"""The ground truth: every send in an append-only NDJSON file, on disk before the client library hears of it.

A line: `id`, `tenant`, `key` (who sent it), `seq` (its number from that sender to that tenant), `at` (seconds),
`state`: sent, then acknowledged or refused. What was sent and has no final state is `unknown`: it may have arrived.
`expect`: the payload of its result where it can be foretold. A line cut short by a kill counts as never written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SENT, ACKNOWLEDGED, REFUSED, UNKNOWN = "sent", "acknowledged", "refused", "unknown"


class Journal:
    """One writer's file. `sent` returns when the disk has it; final states are on disk after `sync`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting: list[str] = []

    def sent(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows (without `at` and `state`) as sent, with all states that wait, and wait for the disk."""
        now = time.time()
        self._waiting += [json.dumps({**row, "at": now, "state": SENT}) for row in rows]
        self.sync()

    def settled(self, row: dict[str, Any], state: str) -> None:
        """Note how a send ended; on disk with the next `sent` or `sync`."""
        kept = {name: row[name] for name in ("id", "tenant", "key", "seq")}
        self._waiting.append(json.dumps({**kept, "at": time.time(), "state": state}))

    def sync(self) -> None:
        if self._waiting:
            text = "".join(line + "\n" for line in self._waiting).encode()
            self._waiting.clear()
            while text:
                text = text[os.write(self._file, text) :]
            os.fsync(self._file)

    def close(self) -> None:
        self.sync()
        os.close(self._file)


@dataclass
class Sent:
    """What is known of one id of one tenant: its first send, and whether any of its sends was acknowledged."""

    tenant: str
    id: str
    key: str
    seq: int
    at: float
    state: str
    expect: str | None = None
    sends: int = 1
    acknowledged_at: float = 0.0


def read(paths: Iterable[Path]) -> dict[tuple[str, str], Sent]:
    """Every id that was ever sent, by tenant and id; of a repeated id the first send's order counts."""
    found: dict[tuple[str, str], Sent] = {}
    states: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a kill: it was not handed on either
            place, send = (row["tenant"], row["id"]), (row["key"], row["seq"])
            if row["state"] == SENT:
                old = found.get(place)
                if old is None:
                    found[place] = Sent(*place, *send, row["at"], UNKNOWN, row.get("expect"))
                else:
                    old.sends += 1
                states.setdefault(place, {})[send] = UNKNOWN
                continue
            states[place][send] = row["state"]
            if row["state"] == ACKNOWLEDGED and not found[place].acknowledged_at:
                found[place].acknowledged_at = row["at"]
    for place, ends in states.items():
        found[place].state = next(
            (state for state in (ACKNOWLEDGED, UNKNOWN, REFUSED) if state in ends.values()), UNKNOWN
        )
    return found
