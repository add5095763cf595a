"""Orders to processors: which of them stand still because somebody said so (topic `aos.processors`).

in: aos.processors, one order a message, Arrow or JSON, by the view service of each worker; operators write it
    themselves (infra/orders.py, or any producer). Not through admit: an order to admit must be heard while admit rests.
key: the processor's name, so that the compacted topic keeps the last order of each; an order under another name's key
    would be compacted away with it, and is refused.
state: the last order of each processor.
order: the partition's; the last order of a processor holds. A tombstone is no order: the processor runs.
errors: AOS1014 for what is no order; every worker says so in its log, `aos processors list` shows it, nothing changes.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import pyarrow as pa

from aos.codecs.errors import RecordError

TOPIC = "aos.processors"
STANDING = {
    "pause": "paused",
    "drain": "draining",
}  # what a processor is once it stands; drained when all has ended
ACTIONS = (*STANDING, "resume")
DRAINS = (
    "encode",
)  # lets work in: without it all that is under way ends. To drain any other would only pause it


class Order(NamedTuple):
    """The last order of a processor."""

    processor: str
    action: str
    ordered_at: Any = None
    ordered_by: str | None = None
    reason: str | None = None

    @property
    def mark(self) -> str:
        """What owners write into their commits once they stand under this very order; empty: they run."""
        if self.action not in STANDING:
            return ""
        said = "|".join(map(str, self))
        return f"{self.action} {zlib.crc32(said.encode()):08x}"


class Orders:
    """The last order of each processor, by name."""

    def __init__(self) -> None:
        self.last: dict[str, Order] = {}

    def apply(self, key: bytes, rows: pa.RecordBatch | None) -> None:
        """Take in one message; RecordError when it is no order."""
        name = key.decode(errors="replace")
        if rows is None:
            self.last.pop(name, None)
            return
        self.last[name] = order_of(name, rows)

    def mark(self, processor: str) -> str:
        """The mark under which a processor is to stand; empty: it is to run."""
        order = self.last.get(processor)
        return order.mark if order is not None else ""


def order_of(key: str, rows: pa.RecordBatch) -> Order:
    """The order in a message, checked."""
    if rows.num_rows != 1:
        raise RecordError("AOS1014", f"{rows.num_rows} orders in a message of {TOPIC}: write one")
    order = Order(**rows.to_pylist()[0])
    if order.processor != key:
        raise RecordError(
            "AOS1014", f"processor={order.processor!r} under the key {key!r}: make them the same"
        )
    if order.action not in ACTIONS:
        raise RecordError("AOS1014", f"action={order.action!r}: one of {', '.join(ACTIONS)}")
    if order.action == "drain" and order.processor not in DRAINS:
        raise RecordError(
            "AOS1014", f"drain of {order.processor}: only {', '.join(DRAINS)} lets work in; pause it"
        )
    return order
