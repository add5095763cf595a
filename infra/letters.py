"""Dead letters as an operator sees them: read from their topic, chosen, and sent back to where they were read.

A letter is known by the place of its bytes, `<topic>/<partition>/<offset>[:<row>]`. What is sent back keeps that place
in a header (`streams.origins`), so that a request without an id of its client stays the one it would have been.
Refused, each with a sentence: a body that was cut at 64 KiB, headers that were cut, topics nobody but AOS writes, and
what was sent back before (its header is looked for behind the letter in its topic), because a request that ended more
than `repeat_window_s` ago would run again.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from aos.agents.sdk.client import follow
from aos.codecs import wire
from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, base_of, record_of
from aos.infra.security.connections import clients
from aos.streams.dead_letters import DEAD_LETTERS, HEADERS_CUT
from aos.streams.origins import ORIGIN, Origin, parse

FILTERS = ("processor", "code", "topic", "tenant", "since")
_AGO = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
Letter = dict[str, Any]  # a row of the record dead-letter, with its `place`
Message = tuple[str, int, int]  # topic without prefix, partition, offset


class Redrive(NamedTuple):
    """A message to be sent back, or why it is not (`refused`)."""

    place: str
    rows: tuple[int, ...]
    origin: Origin
    headers: Mapping[str, bytes]
    body: bytes
    refused: str = ""


def place_of(row: Mapping[str, Any]) -> str:
    """Where a letter's bytes stood."""
    tail = f":{row['row']}" if row["row"] >= 0 else ""
    return f"{row['topic']}/{row['partition']}/{row['offset']}{tail}"


def since(text: str, now: datetime.datetime) -> datetime.datetime:
    """A time: ISO 8601 (UTC without a zone), or so long ago: 30m, 2h, 1d."""
    found = _AGO.fullmatch(text)
    if found is not None:
        return now - datetime.timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError("AOS5002", f"since={text!r}", "say 30m, 2h, 1d, or a time in ISO 8601") from error
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def chosen(letters: Iterable[Letter], wanted: Mapping[str, Any]) -> list[Letter]:
    """Letters that fit all `wanted` of FILTERS (None: any; `since`: a time, of the original message)."""
    begin = wanted.get("since")
    same = [(name, wanted[name]) for name in FILTERS[:-1] if wanted.get(name) is not None]
    return [
        letter
        for letter in letters
        if all(letter[name] == value for name, value in same)
        if begin is None or letter["appended_at"] >= begin
    ]


def at_places(letters: Sequence[Letter], places: Sequence[str]) -> list[Letter]:
    """Letters at places, in their order; without a row, all of the message. LookupError for one that is not there."""
    found = []
    for place in places:
        here = [each for each in letters if place in (each["place"], each["place"].partition(":")[0])]
        if not here:
            raise LookupError(place)
        found += here
    return found


def headers_of(letter: Letter) -> dict[str, bytes]:
    """The headers it kept."""
    return {name: base64.b64decode(value) for name, value in json.loads(letter["headers"] or "{}").items()}


def redrives(
    letters: Sequence[Letter], wanted: Sequence[Letter], sent: Mapping[Origin, int]
) -> list[Redrive]:
    """What to send back for the `wanted` among all `letters`: one message a message, with the rows that are wanted.

    `sent`: what was sent back before, with the offset it has now.
    """
    by_message: dict[Message, list[Letter]] = {}
    for letter in wanted:
        by_message.setdefault(_message(letter), []).append(letter)
    bodies: dict[Message, Letter] = {}
    for letter in letters:
        if letter["body"] or not letter["body_size"]:
            bodies.setdefault(_message(letter), letter)
    return [_redrive(message, rows, bodies.get(message), sent) for message, rows in by_message.items()]


def _redrive(
    message: Message, letters: Sequence[Letter], whole: Letter | None, sent: Mapping[Origin, int]
) -> Redrive:
    topic, partition, offset = message
    numbers = {letter["row"] for letter in letters}
    rows = () if -1 in numbers else tuple(sorted(numbers))
    headers = headers_of(whole or letters[0])
    first = parse(headers.get(ORIGIN, b""))
    if first is not None and first[:2] == (topic, partition) and first.offset <= offset:
        offset = first.offset  # it was sent back before and failed again: it stays the first message
    rows = rows or (first.rows if first is not None and first.offset == offset else ())
    origin = Origin(topic, partition, offset, rows)
    refused = _refused(topic, whole, headers)
    # a letter of a message that came again stands at the first one's place: that is no reason to hold it back
    before = max((at for known, at in sent.items() if _same(known, origin)), default=None)
    if not refused and before is not None:
        refused = f"it was sent back before, as {topic}/{partition}/{before}: say --again if that failed"
    kept = {name: value for name, value in headers.items() if name not in (ORIGIN, HEADERS_CUT)}
    return Redrive(
        f"{topic}/{partition}/{message[2]}", rows, origin, kept, whole["body"] if whole else b"", refused
    )


def _same(known: Origin, origin: Origin) -> bool:
    """Whether a message that was sent back had any of these rows."""
    both = bool(known.rows) and bool(origin.rows)
    return known[:3] == origin[:3] and (not both or bool(set(known.rows) & set(origin.rows)))


def _refused(topic: str, whole: Letter | None, headers: Mapping[str, bytes]) -> str:
    base = base_of(topic)
    if base not in TOPICS or not TOPICS[base].wants_json:
        return f"{topic} is written by AOS alone, which asks again by itself"
    if base == "aos.heartbeats":
        return "a sign of life of long ago would be a lie"
    if whole is None:
        return "the letter with its bytes is no longer there"
    if len(whole["body"]) < whole["body_size"]:
        return f"its body was cut: {len(whole['body'])} of {whole['body_size']} bytes were kept"
    if HEADERS_CUT in headers:
        return "its headers were cut"
    return ""


def _message(letter: Letter) -> Message:
    return letter["topic"], letter["partition"], letter["offset"]


async def read(settings: Settings) -> list[Letter]:
    """All letters on the topic, oldest first, each place of a processor once."""
    found: dict[tuple[str, str], Letter] = {}
    consumer = await follow(clients(settings), settings.prefix + DEAD_LETTERS, begin=True)
    try:
        for message in await _to_the_end(consumer):
            rows = wire.decode(message.value, dict(message.headers), record_of(DEAD_LETTERS)).to_pylist()
            for row in rows:
                row["place"] = place_of(row)
                found.setdefault((row["processor"], row["place"]), row)
    finally:
        await consumer.stop()
    return list(found.values())


async def sent_before(settings: Settings, letters: Sequence[Letter]) -> dict[Origin, int]:
    """What was sent back already, with the offset it has now: found behind the letters in their topics."""
    first: dict[TopicPartition, int] = {}
    for letter in letters:
        if TOPICS.get(base_of(letter["topic"])) is None:
            continue
        place = TopicPartition(settings.prefix + letter["topic"], letter["partition"])
        first[place] = min(letter["offset"], first.get(place, letter["offset"]))
    if not first:
        return {}
    consumer = AIOKafkaConsumer(
        **clients(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=wire.MESSAGE_BYTES_MAX,
    )
    await consumer.start()
    try:
        consumer.assign(list(first))
        for place, offset in first.items():
            consumer.seek(place, offset)
        found = {}
        for message in await _to_the_end(consumer):
            origin = parse(dict(message.headers).get(ORIGIN) or b"")
            at = (message.topic.removeprefix(settings.prefix), message.partition)
            if origin is not None and origin[:2] == at:
                found[origin] = message.offset
        return found
    finally:
        await consumer.stop()


async def _to_the_end(consumer: Any) -> list[Any]:
    """What stands on the assigned partitions now, from where the consumer is."""
    ends = await consumer.end_offsets(consumer.assignment())
    found: list[Any] = []
    while not all([await consumer.position(place) >= end for place, end in ends.items()]):
        for records in (await consumer.getmany(timeout_ms=200)).values():
            found += records
    return found


async def send(settings: Settings, messages: Sequence[Redrive]) -> list[int]:
    """Send messages back to their topic and partition; the offsets they got, all acknowledged."""
    producer = AIOKafkaProducer(
        **clients(settings),
        acks="all",
        enable_idempotence=True,
        max_request_size=wire.MESSAGE_BYTES_MAX,
    )
    await producer.start()
    try:
        sent = []
        for message in messages:
            headers = [*message.headers.items(), (ORIGIN, message.origin.header())]
            place = settings.prefix + message.origin.topic
            told = await producer.send_and_wait(
                place, message.body, partition=message.origin.partition, headers=headers
            )
            sent.append(told.offset)
        return sent
    finally:
        await producer.stop()
