"""What of one partition is in the air: read, but not finished; the commit follows from it alone."""

from __future__ import annotations

from collections import deque
from typing import Any

from faust.types import TP


class Flight:
    """The spans of offsets that were handed out and are not finished, in order.

    The position to commit is the lowest offset that was handed out and not finished, else the end of what was
    finished. Who begins behind its commit (its state is of more, or the loss of what lies between was accepted)
    commits that too: else the loss would have to be accepted again. A span that somebody dropped is never finished:
    the commit stalls before it, in view of the watchdog, instead of passing it. Offsets that were never handed out
    (compacted away, markers) do not count.
    """

    __slots__ = ("_finished", "_spans", "committed", "next")

    def __init__(self, committed: int | None = None, next: int | None = None) -> None:
        self.committed = committed
        self.next = next  # the offset that comes next, if the log has it
        ahead = committed is not None and next is not None and next > committed
        self._finished: int | None = next if ahead else None
        self._spans: deque[list[int]] = deque()  # [lowest unfinished offset, end]

    def took(self, first: int, end: int) -> None:
        """Offsets `first` … `end` - 1 were handed out."""
        self._spans.append([first, end])
        self.next = end

    def finished(self, first: int, end: int) -> None:
        """What was handed out of `first` … `end` - 1 is done, its outputs acknowledged."""
        self._finished = end if self._finished is None else max(self._finished, end)
        for span in self._spans:
            if span[0] >= first and span[0] < end:
                span[0] = min(end, span[1])
        while self._spans and self._spans[0][0] >= self._spans[0][1]:
            self._spans.popleft()

    def position(self) -> int | None:
        """The offset to commit, None if nothing may be committed beyond what is."""
        if self._finished is None:
            return None
        unfinished = [span[0] for span in self._spans if span[0] < span[1]]
        position = min([self._finished, *unfinished])
        return position if self.committed is None or position > self.committed else None

    def reset(self, offset: int) -> None:
        """The partition is sought to `offset`: what was in the air will come again."""
        position = self.position()
        self._spans.clear()
        self._finished = position
        self.next = offset

    @property
    def in_air(self) -> bool:
        return any(low < end for low, end in self._spans)


class NoOffsets(dict[TP, int | None]):
    """In place of Faust's read offsets: it drops what is below the last one it delivered, and sets that only
    after the delivery, so a partition that is sought back meanwhile stands still for ever."""

    def __getitem__(self, tp: TP) -> None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None: ...

    def update(self, *_: Any, **__: Any) -> None: ...
