"""Orders to processors as an operator sees them: given, read, and how far each processor has come with its own.

Who gives one writes `aos.processors` itself: that needs no processor, so admit too can be paused and told to go on, and
an order can be given while every worker is down. Whether a processor stands is read in its group's commits
(`streams.shell.rest`): once every partition that has one says the mark of this very order, nothing is in the air.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aos.codecs.errors import RecordError, SettingsError
from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings
from aos.infra.logs import append, whole
from aos.streams.orders import DRAINS, STANDING, TOPIC, Order, Orders, order_of
from aos.streams.shell.codec import WireCodec
from aos.streams.topology import PROCESSORS

RUNNING, DOWN = "running", "not running"


@dataclass(slots=True)
class Heard:
    """The orders there are, and what on their topic is none: offset and why."""

    orders: Orders = field(default_factory=Orders)
    refused: list[dict[str, Any]] = field(default_factory=list)


async def read(settings: Settings) -> Heard:
    """All that is on the topic. StackError when the broker does not answer."""
    heard, codec = Heard(), WireCodec()
    for record in await whole(settings, TOPIC):
        key = record.key or b""
        try:
            rows = None if record.value is None else codec.decode(TOPIC, record.value, dict(record.headers))
            heard.orders.apply(key, rows)
            _known(heard, key.decode(errors="replace"))
        except RecordError as error:
            heard.refused.append({"offset": record.offset, "key": key, "message": str(error)})
    return heard


def _known(heard: Heard, name: str) -> None:
    """A processor that is not there hears nothing: its order is none."""
    if name not in PROCESSORS and name in heard.orders.last:
        del heard.orders.last[name]
        raise RecordError("AOS1014", f"processor={name!r}: one of {', '.join(PROCESSORS)}")


def check(processor: str, action: str) -> None:
    """SettingsError when nobody would hear it."""
    if processor not in PROCESSORS:
        raise SettingsError("AOS5002", f"no processor {processor!r}", f"choose from {', '.join(PROCESSORS)}")
    try:
        order_of(processor, from_dicts("processor-order", [{"processor": processor, "action": action}]))
    except RecordError as error:
        raise SettingsError("AOS5002", error.detail, f"drain {', '.join(DRAINS)}, pause any other") from error


async def give(
    settings: Settings, processor: str, action: str, by: str | None = None, reason: str | None = None
) -> Order:
    """Order a processor; it is heard by every worker, now or at its start."""
    check(processor, action)
    row = {
        "processor": processor, "action": action, "ordered_at": time.time_ns() // 1000, "ordered_by": by,
        "reason": reason,
    }  # fmt: skip
    rows = from_dicts("processor-order", [row])
    order = order_of(processor, rows)
    await append(settings, TOPIC, rows, processor.encode(), "`aos processors list` says whether it counts")
    return order


def state(order: Order | None, members: int, marks: Iterable[str]) -> str:
    """How a processor is: `marks` are the words of its commits, of partitions that have one."""
    if not members:
        return DOWN
    if order is None or not order.mark:
        return RUNNING
    if all(word == order.mark for word in marks):
        return STANDING[order.action]
    return "pausing"
