"""A processor that must not go on, because what it has to read is gone: it stands still and says so.

To skip in silence would be worse: a fold's state would rest on half a log, and work would vanish that was acknowledged.
An operator who accepts the loss names the topic in the setting accept_loss and starts again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import KafkaError

from aos.codecs import rows as make
from aos.streams.processor import Output
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.fatal import log
from aos.streams.shell.options import Options
from aos.streams.shell.outgoing import messages_of
from aos.streams.shell.producer import Producer, Undeliverable
from aos.streams.shell.reader import Reader
from aos.streams.shell.topics import Admin

ALERTS = "aos.alerts"
ALERT_S = 10.0  # for the alert: a broker that does not take it must not hold up who stands still
ALERT_BYTES = 256 * 1024
LOOK_S = 5.0
LOOKS = 2  # without a topic before it counts as deleted: a broker that starts may not list all


class Halt:
    """Of one processor: `reason` once it must not go on; its port wants nothing more then."""

    def __init__(self, name: str, options: Options, producer: Producer, reader: Reader) -> None:
        self._name, self._options = name, options
        self._producer, self._reader = producer, reader
        self.reason: str | None = None

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
        if topic in self._options.accept_loss:
            return False
        await self.now(topic, "it was deleted and made anew", {"was": was, "is": id})
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
        await self.alert("gone", topic, message, evidence)

    async def alert(self, what: str, subject: str, message: str, evidence: Mapping[str, Any]) -> None:
        """A row on aos.alerts, if the broker takes it in time; an alert of one name is one alert."""
        row = {
            "alert": f"{self._name}/{subject}/{what}",
            "kind": "opened",
            "source": self._name,
            "subject": subject,
            "message": message,
            "evidence": json.dumps(evidence),
            "seen_at": time.time_ns() // 1000,
        }
        try:
            alert = Output(ALERTS, make.from_dicts("alert", [row]))
            sent = messages_of([alert], WireCodec(), lambda _: ALERT_BYTES)
            async with asyncio.timeout(ALERT_S):
                await self._producer.deliver(sent)
        except (TimeoutError, Undeliverable, KafkaError) as error:
            log.error("%s: the alert was not written: %r", self._name, error)


class TopicWatch:
    """Sees topics that are deleted or made anew while their readers run: their offsets mean nothing any more."""

    def __init__(
        self, options: Options, ids: Mapping[str, str], readers: Iterable[tuple[Halt, Iterable[str]]]
    ) -> None:
        self._options, self._ids = options, ids
        self._readers = [(halt, tuple(topics)) for halt, topics in readers]
        self._missed: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="topic watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

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
                    await halt.now(topic, "it was deleted", {"was": known})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                async with Admin(self._options) as admin:
                    there = {name: id for name, (id, _) in (await admin.ids()).items()}
            except KafkaError as error:
                log.warning("the topics are not known: %s", error)
                continue
            await self.judge(there)
