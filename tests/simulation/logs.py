"""The logs of a played world as rows: what the invariants look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

from aos.codecs.topics import tenant_topic
from aos.streams.simulated_log import World

Row = dict[str, Any]
LARGE = ("embedding", "surface", "alternatives", "candidates", "filtered")


def frozen(value: Any) -> Hashable:
    """A row as something that can stand in a set."""
    if isinstance(value, dict):
        return tuple((name, frozen(part)) for name, part in value.items())
    if isinstance(value, list):
        return tuple(map(frozen, value))
    return value.tobytes() if hasattr(value, "tobytes") else value  # type: ignore[no-any-return]


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], dict[Hashable, Row]]:
    """Distinct rows by key: a row said twice in the same words counts once."""
    found: dict[tuple[Any, ...], dict[Hashable, Row]] = defaultdict(dict)
    for row in rows:
        found[tuple(row[name] for name in names)][frozen(row)] = row
    return found


def key_of(row: Row) -> tuple[bytes, int, int, int]:
    """The attempt a row is about."""
    return row["request_id"], row["round"], row["step"], row["attempt"]


def said(world: World, topic: str) -> list[Row]:
    """Every row of a topic, without the tensors and lists that no law is about."""
    return world.rows(topic, LARGE)


def results(world: World) -> list[Row]:
    """Every result of every tenant."""
    return [
        {**row, "topic": topic}
        for topic in (tenant_topic("aos.results", tenant) for tenant in world.settings.tenants)
        for row in said(world, topic)
    ]


def children(world: World) -> dict[bytes, Row]:
    """What agents handed out, by id: the rows that supervise wrote for them."""
    rows = [
        row
        for row in said(world, "aos.ledger")
        if row["kind"] == "requested" and row["parent_id"] is not None
    ]
    return {row["request_id"]: row for row in rows}
