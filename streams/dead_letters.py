"""What could not be read, as rows of aos.dead-letters: where it stood, why it was refused, its headers and bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from aos.codecs import rows as make
from aos.codecs.errors import CODES, RecordError
from aos.codecs.topics import tenant_of
from aos.streams.processor import Output, Raw

DEAD_LETTERS = "aos.dead-letters"
BODY_BYTES_MAX = 64 * 1024  # of the original that a dead letter keeps
PARKED_BYTES_MAX = 4 * 1024 * 1024  # of one that only a later release can read: it waits for that
HEADERS_BYTES_MAX = 4 * 1024
HEADERS_CUT = "aos-cut"  # stands among the headers of a letter that could not keep all
MESSAGE_CHARS_MAX = 1_000
ROWS_NAMED_MAX = 64  # dead letters a message; the last one says how many rows it stands for


class DeadLetters:
    """Dead letters of one step, in order."""

    def __init__(self, processor: str, tenants: Sequence[str]) -> None:
        self._processor, self._tenants = processor, tenants
        self._rows: list[dict[str, Any]] = []

    def message(self, raw: Raw, code: str, detail: str) -> None:
        """A message that cannot be read at all."""
        self._add(raw, code, detail, -1, kept(raw.value, code))

    def rows(self, raw: Raw, bad: dict[int, RecordError]) -> None:
        """Rows of a message that is readable otherwise, by row number."""
        named = sorted(bad)[:ROWS_NAMED_MAX]
        for place, row in enumerate(named):
            detail = bad[row].detail
            if place == 0:
                body = raw.value[:BODY_BYTES_MAX]
            else:
                body, detail = b"", f"{detail} (the bytes are with row {named[0]})"
            if place == ROWS_NAMED_MAX - 1 and len(bad) > ROWS_NAMED_MAX:
                detail += f"; {len(bad) - ROWS_NAMED_MAX} further rows of this message are bad too"
            self._add(raw, bad[row].code, detail, row, body)

    def refused(self, raw: Raw, code: str, message: str) -> None:
        """A message that a step or a sink gave up on, in the words of the error."""
        self._keep(raw, code, message, -1, kept(raw.value, code))

    def outputs(self) -> list[Output]:
        """One output, or none."""
        return [Output(DEAD_LETTERS, make.from_dicts("dead-letter", self._rows))] if self._rows else []

    def _add(self, raw: Raw, code: str, detail: str, row: int, body: bytes) -> None:
        where = "" if row < 0 else f"row {row}: "
        self._keep(raw, code, f"{CODES[code].message}: {where}{detail}; {CODES[code].hint}", row, body)

    def _keep(self, raw: Raw, code: str, message: str, row: int, body: bytes) -> None:
        self._rows.append(
            {
                "tenant": tenant_of(raw.topic, self._tenants) or "",
                "processor": self._processor,
                "code": code,
                "message": message[:MESSAGE_CHARS_MAX],
                "topic": raw.topic,
                "partition": raw.partition,
                "offset": raw.offset,
                "row": row,
                "headers": _headers(raw),
                "body": body,
                "body_size": len(raw.value),
                "appended_at": raw.appended_at,
            }
        )


def kept(value: bytes, code: str) -> bytes:
    """What a dead letter keeps of a message's bytes."""
    return value[: PARKED_BYTES_MAX if code == "AOS1011" else BODY_BYTES_MAX]


def _headers(raw: Raw) -> str:
    """The headers as JSON with base64 values, as many as fit."""
    kept: dict[str, str] = {}
    room = HEADERS_BYTES_MAX
    for name, value in raw.headers.items():
        shown = base64.b64encode(value or b"").decode()
        room -= len(name) + len(shown)
        if room < 0:
            kept[HEADERS_CUT] = ""
            break
        kept[name] = shown
    return json.dumps(kept)
