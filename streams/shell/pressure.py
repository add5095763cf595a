"""How busy this machine is: what the edges look at before they make work of every few records."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

EVERY_S = 0.25  # how often it is looked at: /proc/stat counts in hundredths of a second

Counter = Callable[[], tuple[float, float] | None]


def counted() -> tuple[float, float] | None:
    """CPU time of the machine so far, busy and in all (any unit); None where there is no /proc/stat."""
    try:
        with Path("/proc/stat").open() as file:
            numbers = [float(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = numbers[3] + numbers[4]  # idle, waiting for a disk
    return sum(numbers) - idle, sum(numbers)


class Pressure:
    """Share of the machine's CPU time that was in use lately, 0 to 1; 0 where nobody can tell."""

    def __init__(self, counter: Counter = counted, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter, self._clock = counter, clock
        self._seen_at = float("-inf")
        self._seen: tuple[float, float] | None = None
        self.busy = 0.0

    def look(self) -> bool:
        """Look again if it is time; whether `busy` is new."""
        now = self._clock()
        if now - self._seen_at < EVERY_S:
            return False
        self._seen_at = now
        last, self._seen = self._seen, self._counter()
        if last is None or self._seen is None or self._seen[1] <= last[1]:
            return False
        self.busy = (self._seen[0] - last[0]) / (self._seen[1] - last[1])
        return True
