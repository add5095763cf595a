"""A ledger to play with: rows said in a few words, folded one message at a time, outputs as dicts by topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from aos.agents import identity
from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings
from aos.codecs.topics import record_of
from aos.codecs.wire import encode
from aos.streams import supervise
from aos.streams.processor import Batch, Recall, Views

NOW = 1_750_000_000_000_000
SECOND = 1_000_000
SECRET = b"a key"
VECTOR = [0.0] * 255 + [1.0]
Row = dict[str, Any]


def id_of(number: int) -> bytes:
    """The id of the n-th request."""
    return number.to_bytes(16, "big")


def row(kind: str, number: int = 1, **said: Any) -> Row:
    """A ledger row of the n-th request."""
    head = {
        "tenant": "default", "request_id": id_of(number), "requested_at": NOW, "home": 0, "domain": "default",
        "round": 0, "kind": kind,
    }  # fmt: skip
    return head | said


def asked(name: str = "only", **said: Any) -> Row:
    """A step of a request."""
    plain = {
        "name": name, "require": [], "after": [], "judges": -1, "pin": [], "exclude": [],
        "text": f"do {name}", "embedding": VECTOR, "surface": [float(len(name))] * 16,
    }  # fmt: skip
    return plain | said


def requested(number: int = 1, *steps: Row, **said: Any) -> Row:
    """A request with these steps, or with one."""
    plain = {"id": f"job-{number}", "priority": 1, "steps": list(steps) or [asked()]}
    return row("requested", number, **(plain | said))


def candidate(agent: str, cell: str = "a", **said: Any) -> Row:
    """An alternative; cell `a` lives in partition 0 of the lanes, `b` in 1."""
    plain = {
        "agent": agent, "service": f"s-{agent}", "cell": cell, "cell_partition": ord(cell) - ord("a"), "score": 0.5,
        "deviation": 0.1, "similarity": 0.0, "cost_usd_micros": 7, "latency_us": 1000, "timeout_ms": 0, "covers": 0,
        "trial": False,
    }  # fmt: skip
    return plain | said


def planned(number: int = 1, step: int = 0, agents: Sequence[str | Row] = ("x", "y"), **said: Any) -> Row:
    """Alternatives of a step."""
    found = [candidate(agent) if isinstance(agent, str) else agent for agent in agents]
    plain = {
        "step": step, "match_round": 0, "alternatives": found, "filtered": [], "filtered_count": 0,
        "topology": "single", "model_version": 3, "settings_version": 2, "degraded": False,
    }  # fmt: skip
    return row("planned", number, **(plain | said))


def assigned(number: int = 1, step: int = 0, attempt: int = 1, agent: str = "x", **said: Any) -> Row:
    """allocate's choice."""
    plain = {
        "step": step, "attempt": attempt, "agent": agent, "service": f"s-{agent}", "cell": "a",
        "cell_partition": 0, "epoch": 5, "probability": 0.5, "score_predicted": 0.6, "timeout_ms": 0,
        "model_version": 4, "settings_version": 2, "degraded": False,
    }  # fmt: skip
    return row("assigned", number, **(plain | said))


def refused(number: int = 1, step: int = 0, attempt: int = 1, **said: Any) -> Row:
    """allocate's refusal."""
    plain = {"step": step, "attempt": attempt, "cell": "a", "cell_partition": 0, "code": "AOS3010"}
    return row("refused", number, **(plain | said))


def outcome(
    number: int = 1, step: int = 0, attempt: int = 1, agent: str = "x", status: str = "ok", **said: Any
) -> Row:
    """An agent's answer with its token; the round is that of the token only."""
    epoch = said.get("epoch", 5)
    token = identity.token(SECRET, id_of(number), said.pop("token_round", 0), step, attempt, agent, epoch)
    plain = {
        "step": step, "attempt": attempt, "agent": agent, "epoch": epoch, "token": token, "status": status,
        "payload": b"done" if status == "ok" else None,
    }  # fmt: skip
    return row("outcome", number, **(plain | said))


class World:
    """One partition: its state, its log, all it said."""

    def __init__(self, **settings: Any) -> None:
        self.views = Views(Settings(**settings), {"aos.tasks": 1}, {}, SECRET)
        self.state = supervise.initial(0)
        self.now = NOW
        self.log: list[pa.RecordBatch] = []
        self.said: dict[str, list[Row]] = {}
        self.next_due: int | None = None
        self.recalls: list[Recall] = []

    def fold(self, *rows: Row, after: float = 0.0) -> dict[str, list[Row]]:
        """Fold one message, `after` seconds later; what it said, by topic, each row with its `partition`."""
        return self.fold_rows(from_dicts("entry", rows), after)

    def fold_rows(self, rows: pa.RecordBatch, after: float = 0.0) -> dict[str, list[Row]]:
        self.now += round(after * SECOND)
        self.log.append(rows)
        batch = Batch("aos.ledger", 0, len(self.log) - 1, rows)
        found = supervise.step(self.state, batch, self.now, self.views, 0)
        self.state, self.next_due = found.state, found.next_due
        outputs = list(found.outputs)
        for recall in found.recalls:
            self.recalls.append(recall)
            batches = [Batch("aos.ledger", 0, offset, self.log[offset]) for offset in recall.offsets]
            outputs += supervise.recall(recall, batches, self.views)
        said: dict[str, list[Row]] = {}
        for output in outputs:
            encode(output.rows, record_of(output.topic))  # raises when a row does not fit its record
            for found_row in output.rows.to_pylist():
                said.setdefault(output.topic, []).append({"_partition": output.partition} | found_row)
        for topic, found_rows in said.items():
            self.said.setdefault(topic, []).extend(found_rows)
        return said

    def tick(self, after: float) -> dict[str, list[Row]]:
        """Only time passes."""
        return self.fold_rows(supervise.tick(0, self.now), after)

    def run_to_due(self) -> dict[str, list[Row]]:
        """Time passes until something is due."""
        assert self.next_due is not None
        return self.tick((self.next_due - self.now) / SECOND)

    def reload(self) -> None:
        """Go on from a snapshot."""
        self.state = supervise.load(0, supervise.dump(self.state))

    def bytes(self) -> bytes:
        """The state as it would be written."""
        return state_bytes(supervise.dump(self.state))


def go_on_alike(world: World, other: World, times: int) -> None:
    """Two worlds, one of which was written and read, do the same at every due moment and end with the same bytes."""
    assert other.bytes() == world.bytes()
    for _ in range(times):
        assert other.state.next_due() == world.state.next_due()
        if world.next_due is None:
            break
        assert other.tick((world.next_due - world.now) / SECOND) == world.run_to_due()
    assert other.bytes() == world.bytes()


def state_bytes(tables: dict[str, pa.RecordBatch]) -> bytes:
    """Tables as one string of bytes."""
    sink = pa.BufferOutputStream()
    for name, table in tables.items():
        sink.write(name.encode())
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_batch(table)
    return bytes(sink.getvalue())
