"""A processor that must not go on, because what it has to read is gone: it stands still and says so.

To skip in silence would be worse: a fold's state would rest on half a log, and work would vanish that was acknowledged.
An operator who accepts the loss names the topic in the setting accept_loss and starts again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NoReturn

from aiokafka.errors import KafkaError

from aos.codecs import rows as make
from aos.codecs.errors import RecordError
from aos.streams.processor import Output
from aos.streams.shell.background import Admins, Background
from aos.streams.shell.clock import wall
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.fatal import BROKEN, die, log
from aos.streams.shell.options import Options
from aos.streams.shell.outgoing import messages_of
from aos.streams.shell.producer import Producer, Undeliverable
from aos.streams.shell.reader import Reader

ALERTS = "aos.alerts"
ALERT_S = 10.0  # for the alert: a broker that does not take it must not hold up who stands still
ALERT_BYTES = 256 * 1024
SAY_AGAIN_S = 600.0
GONE, OUTPUTS = "gone", "outputs"  # what an alert is about: the end of its id
Alert = dict[str, Any]  # a row of the record
LOOK_S = 5.0
LOOKS = 2  # without a topic before it counts as deleted: a broker that starts may not list all


class Halt:
    """Of one processor: `reason` once it must not go on; its port wants nothing more then.

    `open`: its alerts that are opened and not cleared, by id; of those that an earlier process opened, the worker
    learns at its start.
    """

    def __init__(self, name: str, options: Options, producer: Producer, reader: Reader) -> None:
        self._name, self._options = name, options
        self._producer, self._reader = producer, reader
        self.reason: str | None = None
        self.open: dict[str, Alert] = {}
        self._stands_by: Alert | None = None
        self._said_at = 0.0

    async def at_gap(self, topic: str, partition: int, expected: int) -> bool:
        """Whether the log begins behind `expected`, the next offset to read, and that is not accepted."""
        first, _ = (await self._reader.bounds([(topic, partition)]))[topic, partition]
        return await self.at_start(topic, partition, expected, first)

    async def at_start(self, topic: str, partition: int, expected: int, first: int) -> bool:
        """The same for a log whose first offset is known."""
        if first <= expected or topic in self._options.accept_loss:
            return False
        evidence = {"partition": partition, "next": expected, "first": first}
        await self.now(topic, "messages were removed before they were read", evidence)
        return True

    async def made_anew(self, topic: str, was: str, id: str) -> bool:
        """Whether that another topic has the name now is not accepted."""
        return await self._unless_accepted(topic, "it was deleted and made anew", {"was": was, "is": id})

    async def deleted(self, topic: str, was: str) -> bool:
        """Whether that nobody has the name any more is not accepted."""
        return await self._unless_accepted(topic, "it was deleted", {"was": was})

    async def _unless_accepted(self, topic: str, message: str, evidence: Mapping[str, Any]) -> bool:
        if topic in self._options.accept_loss:
            return False
        await self.now(topic, message, evidence)
        return True

    async def now(self, topic: str, message: str, evidence: Mapping[str, Any]) -> None:
        """Stand still, and say why: in the log and on aos.alerts."""
        if self.reason is not None:
            return
        self.reason = f"{topic}: {message}"
        log.critical(
            "AOS9003: %s stands still: %s %s; see the setting accept_loss",
            self._name, self.reason, json.dumps(evidence),
        )  # fmt: skip
        self._stands_by = self._alert(GONE, topic, message, evidence)
        await self._say(self._stands_by)

    async def again(self) -> None:
        """Said again now and then while it stands still: the topic of alerts forgets, and of several workers another
        may have cleared it that runs."""
        if self._stands_by is not None and time.monotonic() - self._said_at > SAY_AGAIN_S:
            await self._say({**self._stands_by, "seen_at": wall()})

    async def undelivered(self, error: Exception, partition: int | None = None) -> NoReturn:
        """End the process without a commit, because the broker does not take its outputs; an operator is told."""
        place = {"partition": partition, "error": str(error)[:500]}
        await self._say(self._alert(OUTPUTS, self._name, "outputs were not accepted", place))
        where = self._name if partition is None else f"{self._name}/{partition}"
        die(BROKEN, f"{where}: outputs were not accepted", error)

    async def running(self, partitions: Set[int]) -> None:
        """These partitions have what they read: what was gone of them is there again, or its loss is accepted."""
        if self.reason is None:
            await self._clear(GONE, partitions)

    async def delivered(self, partition: int | None = None) -> None:
        """The broker took outputs of this partition."""
        await self._clear(OUTPUTS, {partition})

    async def _clear(self, what: str, partitions: Set[int | None]) -> None:
        ours = [alert for id, alert in self.open.items() if partitions and id.endswith(f"/{what}")]
        for alert in ours:
            partition = _partition(alert)
            if partition is None or partition in partitions:
                seen_at = max(wall(), alert["seen_at"] + 1)  # clocks of two machines may differ
                await self._say({**alert, "kind": "cleared", "seen_at": seen_at})

    def _alert(self, what: str, subject: str, message: str, evidence: Mapping[str, Any]) -> Alert:
        return {
            "alert": f"{self._name}/{subject}/{what}",
            "kind": "opened",
            "source": self._name,
            "subject": subject,
            "message": message,
            "evidence": json.dumps(evidence),
            "seen_at": wall(),
        }

    async def _say(self, alert: Alert) -> None:
        """A row on aos.alerts, if the broker takes it in time; an alert of one name is one alert."""
        self._said_at = time.monotonic()
        try:
            rows = Output(ALERTS, make.from_dicts("alert", [alert]))
            sent = messages_of([rows], WireCodec(), lambda _: ALERT_BYTES)
            async with asyncio.timeout(ALERT_S):
                await self._producer.deliver(sent)
        except (TimeoutError, Undeliverable, KafkaError) as error:
            log.error("%s: the alert was not written: %r", self._name, error)
            return
        note(self.open, alert)


def _partition(alert: Alert) -> int | None:
    """The partition an alert is about; None when it is about a whole topic."""
    try:
        return json.loads(alert["evidence"]).get("partition")  # type: ignore[no-any-return]
    except (ValueError, AttributeError) as error:
        log.warning("the evidence of the alert %s is not ours: %s", alert["alert"], error)
        return None


def note(open_ones: dict[str, Alert], alert: Alert) -> None:
    """Keep what is open: the last row of an alert in the log counts."""
    if alert["kind"] == "opened":
        open_ones[alert["alert"]] = alert
    else:
        open_ones.pop(alert["alert"], None)


async def open_alerts(reader: Reader) -> dict[str, Alert]:
    """What is open by the topic of alerts as it is now, by id."""
    found: dict[str, Alert] = {}
    codec = WireCodec()
    ((first, end),) = (await reader.bounds([(ALERTS, 0)])).values()
    async for record in reader.read(ALERTS, 0, first, end):
        try:
            rows = codec.decode(ALERTS, record.value, dict(record.headers))
        except RecordError as error:
            log.warning("%s, offset %d is no alert: %s", ALERTS, record.offset, error)
            continue
        for row, seen_at in zip(rows.to_pylist(), make.micros(rows["seen_at"]).tolist(), strict=True):
            note(found, {**row, "seen_at": seen_at})
    return found


class TopicWatch(Background):
    """Sees topics that are deleted or made anew while their readers run: their offsets mean nothing any more.

    `counted` is told how many partitions each topic has.
    """

    def __init__(
        self,
        admins: Admins,
        ids: Mapping[str, str],
        readers: Iterable[tuple[Halt, Iterable[str]]],
        counted: Callable[[Mapping[str, int]], None] = lambda counts: None,
    ) -> None:
        self._admins, self._ids, self._counted = admins, ids, counted
        self._readers = [(halt, tuple(topics)) for halt, topics in readers]
        self._missed: dict[str, int] = {}
        super().__init__("topic watch")

    async def judge(self, there: Mapping[str, str]) -> None:
        """`there`: ids of the topics as they are now."""
        for topic in {topic for _, topics in self._readers for topic in topics}:
            self._missed[topic] = 0 if topic in there else self._missed.get(topic, 0) + 1
        for halt, topics in self._readers:
            for topic in topics:
                known, id = self._ids.get(topic, ""), there.get(topic)
                if id is not None and id != known:
                    await halt.made_anew(topic, known, id)
                elif self._missed[topic] >= LOOKS:
                    await halt.deleted(topic, known)
            await halt.again()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            admin = None
            try:
                admin = await self._admins.get()
                found = await admin.ids()
            except KafkaError as error:
                log.warning("the topics are not known: %s", error)
                await self._admins.drop(admin)
                continue
            self._counted({name: count for name, (_, count) in found.items()})
            await self.judge({name: id for name, (id, _) in found.items()})
