"""Which inbox messages are done: an offset is committed when every row before it has been answered."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple


class At(NamedTuple):
    """Where a piece of work was read."""

    partition: Any
    offset: int


class Offsets:
    """Rows that are still unanswered, by message. One owner, one event loop."""

    def __init__(self) -> None:
        self._open: dict[Any, dict[int, int]] = {}
        self._next: dict[Any, int] = {}

    def read(self, at: At, rows: int) -> None:
        """A message with `rows` rows to answer was taken in."""
        self._next[at.partition] = at.offset + 1
        if rows:
            self._open.setdefault(at.partition, {})[at.offset] = rows

    def answered(self, at: At) -> None:
        """One row of a message has its answer acknowledged (or needs none)."""
        messages = self._open.get(at.partition, {})
        if at.offset not in messages:
            return  # the partition went to another replica and came back
        messages[at.offset] -= 1
        if not messages[at.offset]:
            del messages[at.offset]

    def revoked(self, partitions: Collection[Any]) -> None:
        """Another replica reads these now."""
        for partition in partitions:
            self._open.pop(partition, None)
            self._next.pop(partition, None)

    def to_commit(self) -> dict[Any, int]:
        """The lowest offset not yet answered, by partition."""
        return {
            partition: min(self._open[partition]) if self._open.get(partition) else following
            for partition, following in self._next.items()
        }
