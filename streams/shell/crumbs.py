"""Which message each step is at, in a file that outlives the process: what kills its reader each time is found by it.

A step that raises is the loop's affair. A step that ends the process (a crash in native code, the kernel's hand
when memory runs out, the watchdog's when it never returns) leaves its crumb behind; after the third death at one
message that message is a dead letter. An edge steps many at once: after a death it takes them one by one for a while.
A kill from outside in the middle of a step counts too: three in a row at one message are not chance.
cost: .3 us a step.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

DEATHS_MAX = 3
SLOT_BYTES = 512
GROW_SLOTS = 64
_SLOT = struct.Struct("<qqii")  # offset, suspect, deaths at the suspect, whether a step is at work
_BUSY_AT = struct.calcsize("<qqi")
_NAME_BYTES = SLOT_BYTES - _SLOT.size


class Crumb:
    """Of one topic and partition of a processor."""

    __slots__ = ("_at", "_file")

    def __init__(self, file: Crumbs, at: int) -> None:
        self._file, self._at = file, at

    def enter(self, offset: int) -> None:
        """A step takes this message up."""
        struct.pack_into("<q", self._file.memory, self._at, offset)
        struct.pack_into("<i", self._file.memory, self._at + _BUSY_AT, 1)

    def leave(self) -> None:
        """It came back, with a result or an exception."""
        struct.pack_into("<i", self._file.memory, self._at + _BUSY_AT, 0)

    @property
    def suspect(self) -> tuple[int, int]:
        """The message that the last processes died at, and how many did in a row; (-1, 0) if none did."""
        _, offset, deaths, _ = _SLOT.unpack_from(self._file.memory, self._at)
        return offset, deaths

    def look(self) -> None:
        """At the start of a process: whether the one before died here."""
        offset, suspect, deaths, busy = _SLOT.unpack_from(self._file.memory, self._at)
        if busy:
            deaths = deaths + 1 if offset == suspect else 1
            _SLOT.pack_into(self._file.memory, self._at, offset, offset, deaths, 0)


def deadly(crumbs: Mapping[str, Crumb]) -> set[tuple[str, int]]:
    """Topic and offset of what ended the process too often, of crumbs by topic."""
    suspects = {topic: crumb.suspect for topic, crumb in crumbs.items()}
    return {(topic, offset) for topic, (offset, deaths) in suspects.items() if deaths >= DEATHS_MAX}


def suspicious(crumbs: Mapping[str, Crumb]) -> bool:
    """Whether a process died at any of them."""
    return any(crumb.suspect[1] for crumb in crumbs.values())


class Crumbs:
    """The file of one worker; without a path it remembers nothing beyond the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        self.memory = self._opened(GROW_SLOTS)
        for at in range(0, len(self.memory), SLOT_BYTES):
            name = self.memory[at + _SLOT.size : at + SLOT_BYTES].rstrip(b"\x00").decode(errors="replace")
            if name:
                self._places[name] = at
                Crumb(self, at).look()

    def of(self, processor: str, topic: str, partition: int) -> Crumb:
        """The crumb of one input."""
        name = f"{processor}/{partition}/{topic}"[:_NAME_BYTES]
        if name not in self._places:
            at = self._places[name] = len(self._places) * SLOT_BYTES
            if at >= len(self.memory):
                self.memory = self._opened(at // SLOT_BYTES + GROW_SLOTS)
            _SLOT.pack_into(self.memory, at, -1, -1, 0, 0)
            self.memory[at + _SLOT.size : at + SLOT_BYTES] = name.encode()[:_NAME_BYTES].ljust(
                _NAME_BYTES, b"\x00"
            )
        return Crumb(self, self._places[name])

    def _opened(self, slots: int) -> mmap.mmap:
        if self._path is None:
            grown = mmap.mmap(-1, slots * SLOT_BYTES)
            if self._places:
                grown[: len(self.memory)] = self.memory[:]
            return grown
        with self._path.open("a+b") as file:
            size = max(slots * SLOT_BYTES, -(-file.seek(0, 2) // SLOT_BYTES) * SLOT_BYTES)
            file.truncate(size)
            return mmap.mmap(file.fileno(), size)
