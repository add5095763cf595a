"""How busy this machine is, and waits that go by it: before work is made of every few records."""

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


class Pressed:
    """A wait of at least `least_s`: longer while the machine is busier than `BUSY`, else shorter.

    Whatever waits makes fewer and larger rounds, which cost about the same whatever is in them.
    """

    BUSY, CHANGE = 0.7, 1.15  # share of the machine in use that is aimed at; factor of one look at it

    def __init__(self, least_s: float, pressure: Pressure | None = None) -> None:
        self._least_s = least_s
        self._pressure = pressure or Pressure()
        self._wait_s = least_s

    def wait_s(self, most_s: float) -> float:
        """How long to wait now; no longer than `most_s`."""
        if self._least_s < most_s and self._pressure.look():
            self._wait_s *= self.CHANGE if self._pressure.busy > self.BUSY else 1 / self.CHANGE
        self._wait_s = min(most_s, max(self._least_s, self._wait_s))
        return self._wait_s
