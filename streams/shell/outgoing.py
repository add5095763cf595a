"""What one round of steps wants to send: joined by target, split by size, in the order that must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from aos.streams.dead_letters import DEAD_LETTERS
from aos.streams.processor import Output, Recall, Step
from aos.streams.shell.codec import Codec
from aos.streams.shell.producer import Message, Undeliverable

JOIN_BYTES_MAX = 1024 * 1024  # a joined message: large enough to be cheap, small enough to be a round's work


class Outgoing:
    """Outputs of a round. Dead letters go first, then what must be acknowledged first, then the rest."""

    def __init__(self) -> None:
        self.dead: list[Output] = []
        self.first: list[Output] = []
        self.rest: list[Output] = []
        self.recalls: list[Recall] = []

    def add(self, step: Step[Any]) -> None:
        self.first += step.first
        self.recalls += step.recalls
        for output in step.outputs:
            (self.dead if output.topic == DEAD_LETTERS else self.rest).append(output)

    @property
    def empty(self) -> bool:
        return not (self.dead or self.first or self.rest or self.recalls)


def messages_of(outputs: Iterable[Output], codec: Codec, limit: Callable[[str], int]) -> list[Message]:
    """Encode outputs: those of equal target and schema joined, keyed ones alone, none above its topic's `limit`."""
    found: list[Message] = []
    joined: dict[tuple[str, int], list[list[Output]]] = {}  # by target, outputs of one schema together
    for output in outputs:
        if output.key is not None:
            found += _encode([output], codec, limit)
        elif output.rows.num_rows:
            _join(joined.setdefault((output.topic, output.partition), []), output)
    for groups in joined.values():
        for group in groups:
            for part in _portions(group):
                found += _encode(part, codec, limit)
    return found


def _join(groups: list[list[Output]], output: Output) -> None:
    """Put an output to those of its schema; schemas are compared, because to hash one costs 20 to 60 us."""
    schema = output.rows.schema
    for group in groups:
        if group[0].rows.schema == schema:
            group.append(output)
            return
    groups.append([output])


def _portions(group: list[Output]) -> list[list[Output]]:
    """Cut a group where it would grow above what one message should hold."""
    if len(group) == 1:
        return [group]  # to ask for its bytes costs more than to encode it
    portions: list[list[Output]] = [[]]
    size = 0
    for output in group:
        nbytes = output.rows.nbytes
        if portions[-1] and size + nbytes > JOIN_BYTES_MAX:
            portions.append([])
            size = 0
        portions[-1].append(output)
        size += nbytes
    return portions


def _encode(group: Sequence[Output], codec: Codec, limit: Callable[[str], int]) -> list[Message]:
    one = group[0]
    rows = one.rows if len(group) == 1 else pa.concat_batches([output.rows for output in group])
    return _split(one, rows, codec, limit(one.topic))


def _split(target: Output, rows: pa.RecordBatch, codec: Codec, bytes_max: int) -> list[Message]:
    """One message, or the halves of its rows when it is too large for the topic."""
    value, headers = codec.encode(target.topic, rows)
    if len(value) <= bytes_max:
        return [Message(target.topic, target.partition, target.key, value, headers)]
    if rows.num_rows < 2 or target.key is not None:
        raise Undeliverable(f"{len(value)} bytes in one row for {target.topic}, at most {bytes_max}")
    half = rows.num_rows // 2
    first, second = rows.slice(0, half), rows.slice(half)
    return _split(target, first, codec, bytes_max) + _split(target, second, codec, bytes_max)
